"""The networks and nothing else: no files, no devices chosen, no requests.

Module and parameter names follow the checkpoints (black-forest-labs/flux, XLabs-AI/flux-ip-adapter), so that their
keys load unrenamed.
"""
