"""How many replicas each stage should have: decided from the work that waits, in seconds of a replica."""
