"""What we compute, computed another way: by other people's code fed with our weights, or as a plain definition."""
