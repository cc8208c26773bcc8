"""Other people's implementations of what we compute, fed with our weights."""
