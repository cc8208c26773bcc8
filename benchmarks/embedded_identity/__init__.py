"""Does the embedded model draw the person in the photo? ``python -m benchmarks.embedded_identity --help``."""
