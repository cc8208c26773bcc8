"""From the bytes a caller sent to the crop that is encoded: decode, find the face, cut it out.

No torch, no web framework: this runs on CPU machines of its own.
"""
