"""One accelerator, one model: requests in, images out. Knows nothing of Ray, HTTP or replicas."""
