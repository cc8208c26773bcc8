"""What kind of picture bytes are, by their first bytes: names and headers can be wrong, these can't."""

from __future__ import annotations

from typing import Final

HEAD_BYTES: Final = 12
"""How many bytes are enough to tell."""


def media_type_of(head: bytes) -> str | None:
    """The media type of a JPEG, PNG, WebP or GIF; None for anything else.

    Signatures: JPEG SOI and the next marker's 0xFF (ITU-T T.81 B.1.1), PNG (RFC 2083 §3.1), WebP (RFC 9649 §2.4),
    GIF87a and GIF89a.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "image/gif"
    return None
