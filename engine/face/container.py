"""What an image file says about itself, read without decoding a pixel, and the file cut down to its first frame.

A decoder should see nothing it does not need. Text, thumbnails, later frames, metadata and trailers are where hostile
files hide work (compressed text, endless comments, thousands of frames or scans) and where Pillow warns or guesses, so
each reader here walks the file's own structure, bounded by its length, notes size and orientation, and hands on only
the parts that make the first frame's colours.

Structures: JPEG ITU-T T.81 annex B; PNG W3C 3rd edition; WebP RFC 9649; GIF89a specification; EXIF 2.32 section 4.6.
"""

from __future__ import annotations

import dataclasses
import re
import struct
import zlib
from collections.abc import Callable
from typing import Literal

from engine.errors import UnreadableImageError

ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF"]

MAX_JPEG_SCANS = 100
"""A scan of a progressive JPEG costs a few bytes to send and a pass over the whole picture to decode. Encoders write
about 10; libjpeg-turbo's own fuzzers stop at 500."""

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


def read_container(data: bytes) -> Container:
    """Recognise a JPEG, PNG, WebP or GIF by its content and read its structure.

    Raises:
        UnreadableImageError: another kind of file, one that ends early, or one whose structure is broken.
    """
    for image_format, signature, read in _READERS:
        if signature.match(data):
            try:
                return read(_Reader(data))
            except _EndsEarly:
                raise UnreadableImageError(
                    f"the {image_format} picture is cut short: the file ends before its picture does; send it whole"
                ) from None
            except _Broken as error:
                raise UnreadableImageError(f"the {image_format} picture is damaged: {error}") from None
    raise UnreadableImageError(_not_accepted(data))


def _not_accepted(data: bytes) -> str:
    wanted = "send a JPEG, PNG, WebP or GIF"
    for name, signature in _OTHER_FORMATS:
        if signature.match(data):
            return f"the picture is {name}, which is not accepted; {wanted}"
    return f"the bytes are not a picture of an accepted kind; {wanted}"


_OTHER_FORMATS = tuple(
    (name, re.compile(pattern, re.DOTALL))
    for name, pattern in (
        ("HEIC (an iPhone's own format)", rb".{4}ftyp(?:hei[cxms]|hev[cmsx]|mif1|msf1)"),
        ("AVIF", rb".{4}ftypavi[fs]"),
        ("a TIFF", rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]"),
        ("a BMP", rb"BM.{4}\0\0\0\0"),
        ("a JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
        ("a JPEG 2000", rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  "),
        ("a PDF", rb"%PDF-"),
        ("an SVG", rb"\s*<(?:\?xml|svg)"),
    )
)


class _EndsEarly(Exception):
    """The file ends where more was announced."""


class _Broken(Exception):
    """The file contradicts its format; the message finishes the sentence "the picture is damaged: ..."."""


class _Reader:
    """A position in bytes; taking more than there is raises :class:`_EndsEarly`."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self._num_parts = 0

    def take(self, num_bytes: int) -> bytes:
        start = self.at
        self.skip(num_bytes)
        return self.data[start : self.at]

    def skip(self, num_bytes: int) -> None:
        if self.at + num_bytes > len(self.data):
            raise _EndsEarly
        self.at += num_bytes

    def byte(self) -> int:
        return self.take(1)[0]

    def count_part(self) -> None:
        """Called once a chunk, so that a walk over a file is bounded."""
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise _Broken(f"it is split into more than {MAX_PARTS} parts")


# --- JPEG -----------------------------------------------------------------------------------------------------------

_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame; the three others are tables
_SOS, _EOI = 0xDA, 0xD9
_NEXT_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])", re.DOTALL)  # past stuffed zeros, fills and bare markers


def _read_jpeg(reader: _Reader) -> Container:
    kept = [reader.take(2)]
    size: tuple[int, int] | None = None
    exif = b""
    num_scans = 0
    while True:
        found = _NEXT_MARKER.search(reader.data, reader.at)
        if found is None:
            raise _EndsEarly
        marker, start = found[1][0], found.start()
        if num_scans:
            kept.append(reader.data[reader.at : start])  # what the scan holds; before the first one it would be junk
        reader.at = found.end()
        if marker == _EOI:
            break
        reader.count_part()
        (length,) = struct.unpack(">H", reader.take(2))
        if length < 2:
            raise _Broken("a segment has no room for its own length")
        payload = reader.take(length - 2)
        if marker in _SOF:
            if size is not None or len(payload) < 6:
                raise _Broken("it has more than one frame header, or an incomplete one")
            height, width = struct.unpack(">HH", payload[1:5])
            size = (width, height)
        elif marker == _SOS:
            num_scans += 1
            if num_scans > MAX_JPEG_SCANS:
                raise _Broken(f"it has more than {MAX_JPEG_SCANS} scans; save it again as a plain JPEG")
        elif marker == 0xE1 and payload.startswith(b"Exif\0\0"):
            exif = exif or payload
        if _is_for_jpeg_colours(marker, payload):
            kept.append(b"\xff" + bytes([marker]) + struct.pack(">H", length) + payload)
    if size is None or not num_scans:
        raise _Broken("it has no image data")
    kept.append(b"\xff\xd9")
    return _container("JPEG", size, _exif_orientation(exif), kept)


def _is_for_jpeg_colours(marker: int, payload: bytes) -> bool:
    """Tables, headers and what names the colour space. A stunted application segment is no reason to refuse."""
    if marker == 0xE0:
        return payload.startswith(b"JFIF\0") and len(payload) >= 14
    if marker == 0xE2:
        return payload.startswith(b"ICC_PROFILE\0") and len(payload) > 14
    if marker == 0xEE:
        return payload.startswith(b"Adobe") and len(payload) >= 12
    return marker < 0xE0  # beyond are other applications' own segments, JPEG extensions and comments


# --- PNG ------------------------------------------------------------------------------------------------------------


def _read_png(reader: _Reader) -> Container:
    signature = reader.take(8)
    header = b""
    before: list[bytes] = []
    compressed: list[bytes] = []
    exif = b""
    while True:
        reader.count_part()
        length, kind = struct.unpack(">I4s", reader.take(8))
        payload = reader.take(length)
        (checksum,) = struct.unpack(">I", reader.take(4))
        if kind[:1].isupper() and checksum != zlib.crc32(kind + payload):  # Pillow does not check image data
            raise _Broken("a checksum does not match its data")
        if not header:
            if kind != b"IHDR" or length != 13:
                raise _Broken("it does not begin with its header")
            header = payload
        elif kind == b"IDAT":
            compressed.append(payload)
        elif kind == b"eXIf":
            exif = exif or payload
        elif kind in (b"PLTE", b"iCCP") or (kind == b"tRNS" and not _is_16_bit_colour_key(header)):
            if not compressed:
                before.append(_png_chunk(kind, payload))
        elif kind == b"IEND":
            break
    if not compressed:
        raise _Broken("it has no image data")
    width, height = struct.unpack(">II", header[:8])
    parts = [signature, _png_chunk(b"IHDR", header), *before, _png_chunk(b"IDAT", b"".join(compressed))]
    return _container("PNG", (width, height), _exif_orientation(exif), [*parts, _png_chunk(b"IEND", b"")])


def _is_16_bit_colour_key(header: bytes) -> bool:
    """One exact 16-bit colour stands for transparent: Pillow compares it with 8-bit colours, so it is left out."""
    depth, colour_type = header[8], header[9]
    return depth == 16 and colour_type in (0, 2)


def _png_chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


# --- WebP -----------------------------------------------------------------------------------------------------------

_WEBP_METADATA_FLAGS = 0x08 | 0x04  # EXIF, XMP


def _read_webp(reader: _Reader) -> Container:
    reader.skip(4)
    (riff_bytes,) = struct.unpack("<I", reader.take(4))
    if 8 + riff_bytes > len(reader.data):
        raise _EndsEarly
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
            size = _webp_size(kind, payload)
            if kind == b"VP8X":
                kept.append(_webp_chunk(kind, bytes([payload[0] & ~_WEBP_METADATA_FLAGS]) + payload[1:]))
        is_image = kind in (b"VP8 ", b"VP8L", b"ANMF")
        if kind in (b"ICCP", b"ANIM", b"ALPH") or (is_image and not num_images):
            kept.append(_webp_chunk(kind, payload))
        elif kind == b"EXIF":
            exif = exif or payload
        num_images += is_image
    if size is None or not num_images:
        raise _Broken("it has no image data")
    body = b"WEBP" + b"".join(kept)
    return _container("WEBP", size, _exif_orientation(exif), [_webp_chunk(b"RIFF", body)])


def _webp_chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack("<4sI", kind, len(payload)) + payload + b"\0" * (len(payload) % 2)


def _webp_size(kind: bytes, payload: bytes) -> tuple[int, int]:
    """From the first chunk, whichever of the three it is."""
    if kind == b"VP8X" and len(payload) >= 10:
        return int.from_bytes(payload[4:7], "little") + 1, int.from_bytes(payload[7:10], "little") + 1
    if kind == b"VP8L" and len(payload) >= 5 and payload[0] == 0x2F:
        bits = int.from_bytes(payload[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and len(payload) >= 10 and payload[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", payload[6:10])
        return width & 0x3FFF, height & 0x3FFF
    raise _Broken("it does not begin with its header")


# --- GIF ------------------------------------------------------------------------------------------------------------


def _read_gif(reader: _Reader) -> Container:
    screen = reader.take(13)
    kept = [screen, reader.take(_colour_table_bytes(screen[10]))]
    control = b""
    while (introducer := reader.byte()) == 0x21:  # extensions
        start = reader.at - 1
        label = reader.byte()
        _skip_gif_blocks(reader)
        if label == 0xF9:  # graphic control: transparency of the picture that follows
            control = reader.data[start : reader.at]
    if introducer != 0x2C:
        raise _Broken("it has no image data")
    descriptor = b"\x2c" + reader.take(9)
    kept += [control, descriptor, reader.take(_colour_table_bytes(descriptor[9]))]
    start = reader.at
    reader.skip(1)  # code size
    _skip_gif_blocks(reader)
    kept += [reader.data[start : reader.at], b"\x3b"]
    screen_width, screen_height = struct.unpack("<HH", screen[6:10])
    left, top, width, height = struct.unpack("<HHHH", descriptor[1:9])
    # A first frame that reaches beyond the screen widens it (Pillow's GifImagePlugin does so too).
    return _container("GIF", (max(screen_width, left + width), max(screen_height, top + height)), 1, kept)


def _colour_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip_gif_blocks(reader: _Reader) -> None:
    while length := reader.byte():
        reader.count_part()
        reader.skip(length)


# --- shared ---------------------------------------------------------------------------------------------------------


def _container(image_format: ImageFormat, size: tuple[int, int], orientation: int, parts: list[bytes]) -> Container:
    width_px, height_px = size
    if not width_px or not height_px:
        raise _Broken(f"its header says {width_px}×{height_px} pixels")
    return Container(
        format=image_format,
        width_px=width_px,
        height_px=height_px,
        orientation=orientation,
        first_frame=b"".join(parts),
    )


def _exif_orientation(exif: bytes) -> int:
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


_READERS: tuple[tuple[ImageFormat, re.Pattern[bytes], Callable[[_Reader], Container]], ...] = (
    ("JPEG", re.compile(rb"\xff\xd8\xff"), _read_jpeg),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n"), _read_png),
    ("WEBP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL), _read_webp),
    ("GIF", re.compile(rb"GIF8[79]a"), _read_gif),
)
