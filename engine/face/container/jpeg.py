"""JPEG: ITU-T T.81 annex B."""

from __future__ import annotations

import re
import struct

from engine.face.container.parts import Broken, Container, EndsEarly, Reader, container, exif_orientation

SIGNATURE = re.compile(rb"\xff\xd8\xff")

MAX_SCANS = 100
"""A scan of a progressive JPEG costs a few bytes to send and a pass over the whole picture to decode. Encoders write
about 10; libjpeg-turbo's own fuzzers stop at 500."""

_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame; the three others are tables
_SOS, _EOI = 0xDA, 0xD9
_NEXT_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])", re.DOTALL)  # past stuffed zeros, fills and bare markers


def read(reader: Reader) -> Container:
    """Tables, frame header and scans; of the application segments those that name the colours.

    Raises:
        EndsEarly, Broken: see :mod:`engine.face.container.parts`.
    """
    kept = [reader.take(2)]
    size: tuple[int, int] | None = None
    exif = b""
    num_scans = 0
    while True:
        found = _NEXT_MARKER.search(reader.data, reader.at)
        if found is None:
            raise EndsEarly
        marker, start = found[1][0], found.start()
        if num_scans:
            kept.append(reader.data[reader.at : start])  # what the scan holds; before the first one it would be junk
        reader.at = found.end()
        if marker == _EOI:
            break
        reader.count_part()
        (length,) = struct.unpack(">H", reader.take(2))
        if length < 2:
            raise Broken("a segment has no room for its own length")
        payload = reader.take(length - 2)
        if marker in _SOF:
            if size is not None or len(payload) < 6:
                raise Broken("it has more than one frame header, or an incomplete one")
            height, width = struct.unpack(">HH", payload[1:5])
            size = (width, height)
        elif marker == _SOS:
            num_scans += 1
            if num_scans > MAX_SCANS:
                raise Broken(f"it has more than {MAX_SCANS} scans; save it again as a plain JPEG")
        elif marker == 0xE1 and payload.startswith(b"Exif\0\0"):
            exif = exif or payload
        if _is_for_colours(marker, payload):
            kept.append(b"\xff" + bytes([marker]) + struct.pack(">H", length) + payload)
    if size is None or not num_scans:
        raise Broken("it has no image data")
    kept.append(b"\xff\xd9")
    return container("JPEG", size, exif_orientation(exif), kept)


def _is_for_colours(marker: int, payload: bytes) -> bool:
    """Tables, headers and what names the colour space. A stunted application segment is no reason to refuse."""
    if marker == 0xE0:
        return payload.startswith(b"JFIF\0") and len(payload) >= 14
    if marker == 0xE2:
        return payload.startswith(b"ICC_PROFILE\0") and len(payload) > 14
    if marker == 0xEE:
        return payload.startswith(b"Adobe") and len(payload) >= 12
    return marker < 0xE0  # beyond are other applications' own segments, JPEG extensions and comments
