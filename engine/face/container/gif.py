"""GIF: GIF89a specification."""

from __future__ import annotations

import re
import struct

from engine.face.container.parts import Broken, Container, Reader, container

SIGNATURE = re.compile(rb"GIF8[79]a")


def read(reader: Reader) -> Container:
    """Screen, colours and the first frame with its transparency.

    Raises:
        EndsEarly, Broken: see :mod:`engine.face.container.parts`.
    """
    screen = reader.take(13)
    kept = [screen, reader.take(_colour_table_bytes(screen[10]))]
    control = b""
    while (introducer := reader.byte()) == 0x21:  # extensions
        reader.count_part()
        start = reader.at - 1
        label = reader.byte()
        _skip_blocks(reader)
        if label == 0xF9:  # graphic control: transparency of the picture that follows
            control = reader.data[start : reader.at]
    if introducer != 0x2C:
        raise Broken("it has no image data")
    descriptor = b"\x2c" + reader.take(9)
    kept += [control, descriptor, reader.take(_colour_table_bytes(descriptor[9]))]
    start = reader.at
    reader.skip(1)  # code size
    _skip_blocks(reader)
    kept += [reader.data[start : reader.at], b"\x3b"]
    screen_width, screen_height = struct.unpack("<HH", screen[6:10])
    left, top, width, height = struct.unpack("<HHHH", descriptor[1:9])
    # A first frame that reaches beyond the screen widens it (Pillow's GifImagePlugin does so too).
    return container("GIF", (max(screen_width, left + width), max(screen_height, top + height)), 1, kept)


def _colour_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip_blocks(reader: Reader) -> None:
    while length := reader.byte():
        reader.count_part()
        reader.skip(length)
