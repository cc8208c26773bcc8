"""Which policy should choose who draws next: measured, simulated, shown. ``python -m benchmarks.scheduler --help``."""
