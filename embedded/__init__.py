"""Data and training code of the embedded model: people that are rendered, described and learned from.

Nothing here is imported by the service (`engine`, `serve_app`) or shipped in the wheel.
"""
