"""Training of the embedded model: from drawn people to the six files that the engine loads. See README.md."""
