"""Checkpoint files: which keys they hold, how they are read, and files of the same layouts with random weights."""
