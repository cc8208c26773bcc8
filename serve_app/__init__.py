"""Many replicas, HTTP and scaling around :mod:`engine`. The only package that knows Ray and FastAPI."""
