"""WebP: RFC 9649."""

from __future__ import annotations

import re
import struct

from engine.face.container.parts import Broken, Container, EndsEarly, Reader, container, exif_orientation

SIGNATURE = re.compile(rb"RIFF.{4}WEBP", re.DOTALL)

_METADATA_FLAGS = 0x08 | 0x04  # EXIF, XMP


def read(reader: Reader) -> Container:
    """Canvas, profile and the image, or the first frame of an animation.

    Raises:
        EndsEarly, Broken: see :mod:`engine.face.container.parts`.
    """
    reader.skip(4)
    (riff_bytes,) = struct.unpack("<I", reader.take(4))
    if 8 + riff_bytes > len(reader.data):
        raise EndsEarly
    reader.skip(4)
    size: tuple[int, int] | None = None
    exif = b""
    num_images = 0
    kept: list[bytes] = []
    while reader.at + 8 <= 8 + riff_bytes:
        reader.count_part()
        kind, length = struct.unpack("<4sI", reader.take(8))
        payload = reader.take(length)
        if length % 2 and reader.at < len(reader.data):
            reader.skip(1)
        if size is None:
            size = _size(kind, payload)
            if kind == b"VP8X":
                kept.append(_chunk(kind, bytes([payload[0] & ~_METADATA_FLAGS]) + payload[1:]))
        is_image = kind in (b"VP8 ", b"VP8L", b"ANMF")
        if kind in (b"ICCP", b"ANIM", b"ALPH") or (is_image and not num_images):
            kept.append(_chunk(kind, payload))
        elif kind == b"EXIF":
            exif = exif or payload
        num_images += is_image
    if size is None or not num_images:
        raise Broken("it has no image data")
    body = b"WEBP" + b"".join(kept)
    return container("WEBP", size, exif_orientation(exif), [_chunk(b"RIFF", body)])


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack("<4sI", kind, len(payload)) + payload + b"\0" * (len(payload) % 2)


def _size(kind: bytes, payload: bytes) -> tuple[int, int]:
    """From the first chunk, whichever of the three it is."""
    if kind == b"VP8X" and len(payload) >= 10:
        return int.from_bytes(payload[4:7], "little") + 1, int.from_bytes(payload[7:10], "little") + 1
    if kind == b"VP8L" and len(payload) >= 5 and payload[0] == 0x2F:
        bits = int.from_bytes(payload[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and len(payload) >= 10 and payload[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", payload[6:10])
        return width & 0x3FFF, height & 0x3FFF
    raise Broken("it does not begin with its header")
