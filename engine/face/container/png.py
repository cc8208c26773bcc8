"""PNG: W3C Portable Network Graphics, third edition."""

from __future__ import annotations

import re
import struct
import zlib

from engine.face.container.parts import Broken, Container, Reader, container, exif_orientation

SIGNATURE = re.compile(rb"\x89PNG\r\n\x1a\n")


def read(reader: Reader) -> Container:
    """Header, palette, transparency, profile and the image data in one piece. An animation's default image.

    Raises:
        EndsEarly, Broken: see :mod:`engine.face.container.parts`.
    """
    signature = reader.take(8)
    header = b""
    before: dict[bytes, bytes] = {}
    compressed: list[bytes] = []
    exif = b""
    while True:
        reader.count_part()
        length, kind = struct.unpack(">I4s", reader.take(8))
        payload = reader.take(length)
        (checksum,) = struct.unpack(">I", reader.take(4))
        if kind[:1].isupper() and checksum != zlib.crc32(payload, zlib.crc32(kind)):  # Pillow does not check image data
            raise Broken("a checksum does not match its data")
        if not header:
            if kind != b"IHDR" or length != 13:
                raise Broken("it does not begin with its header")
            header = payload
        elif kind == b"IDAT":
            compressed.append(payload)
        elif kind == b"eXIf":
            exif = exif or payload
        elif kind in (b"PLTE", b"iCCP") or (kind == b"tRNS" and not _is_16_bit_colour_key(header)):
            if not compressed:
                before.setdefault(kind, _chunk(kind, payload))  # once: a profile unpacks to a thousand times its size
        elif kind == b"IEND":
            break
    if not compressed:
        raise Broken("it has no image data")
    width, height = struct.unpack(">II", header[:8])
    parts = [signature, _chunk(b"IHDR", header), *before.values(), _chunk(b"IDAT", b"".join(compressed))]
    return container("PNG", (width, height), exif_orientation(exif), [*parts, _chunk(b"IEND", b"")])


def _is_16_bit_colour_key(header: bytes) -> bool:
    """One exact 16-bit colour stands for transparent: Pillow compares it with 8-bit colours, so it is left out."""
    depth, colour_type = header[8], header[9]
    return depth == 16 and colour_type in (0, 2)


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(payload, zlib.crc32(kind)))
