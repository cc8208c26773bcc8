"""What the four readers share: the result, a bounded walk over bytes, and EXIF's orientation."""

from __future__ import annotations

import dataclasses
import struct
from typing import Literal

ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF"]

MAX_PARTS = 200_000
"""Chunks or blocks of a file. A GIF frame of 20 MB has 80,000 (255 bytes each); other files a few thousand."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Container:
    """An image file before decoding.

    Attributes:
        format: what the bytes are, whatever they were called.
        width_px, height_px: as stored, before turning.
        orientation: EXIF's 1 … 8; 1 where absent or nonsense.
        first_frame: a file of the same format that holds the first frame and its colour profile, nothing else.
    """

    format: ImageFormat
    width_px: int
    height_px: int
    orientation: int
    first_frame: bytes


class EndsEarly(Exception):
    """The file ends where more was announced."""


class Broken(Exception):
    """The file contradicts its format; the message finishes the sentence "the picture is damaged: ..."."""


class Reader:
    """A position in bytes; taking more than there is raises :class:`EndsEarly`."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self._num_parts = 0

    def take(self, num_bytes: int) -> bytes:
        """The next ``num_bytes`` bytes."""
        start = self.at
        self.skip(num_bytes)
        return self.data[start : self.at]

    def skip(self, num_bytes: int) -> None:
        """Pass over ``num_bytes`` bytes, which must be there."""
        if self.at + num_bytes > len(self.data):
            raise EndsEarly
        self.at += num_bytes

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def count_part(self) -> None:
        """Called once a chunk, so that a walk over a file is bounded."""
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise Broken(f"it is split into more than {MAX_PARTS} parts")


def container(image_format: ImageFormat, size: tuple[int, int], orientation: int, parts: list[bytes]) -> Container:
    """``size`` is width and height; ``parts`` make the file of the first frame."""
    width_px, height_px = size
    if not width_px or not height_px:
        raise Broken(f"its header says {width_px}×{height_px} pixels")
    return Container(
        format=image_format,
        width_px=width_px,
        height_px=height_px,
        orientation=orientation,
        first_frame=b"".join(parts),
    )


def exif_orientation(exif: bytes) -> int:
    """Tag 0x0112 of the first directory. Anything odd reads as 1: broken metadata must not cost a good picture."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    (directory,) = struct.unpack(order + "I", tiff[4:8])
    entries = tiff[directory : directory + 2]
    if len(entries) < 2:
        return 1
    for index in range(struct.unpack(order + "H", entries)[0]):
        start = directory + 2 + 12 * index
        entry = tiff[start : start + 12]
        if len(entry) < 12:
            return 1
        tag, kind = struct.unpack(order + "HH", entry[:4])
        if tag == 0x0112:
            value = struct.unpack(order + ("I" if kind == 4 else "H"), entry[8 : 12 if kind == 4 else 10])[0]
            return int(value) if 1 <= value <= 8 else 1
    return 1
