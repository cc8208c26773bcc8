"""What an image file says about itself, read without decoding a pixel, and the file cut down to its first frame.

A decoder should see nothing it does not need. Text, thumbnails, later frames, metadata and trailers are where hostile
files hide work (compressed text, endless comments, thousands of frames or scans) and where Pillow warns or guesses, so
each reader here walks the file's own structure, bounded by its length, notes size and orientation, and hands on only
the parts that make the first frame's colours.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from engine.errors import UnreadableImageError
from engine.face.container import gif, jpeg, png, webp
from engine.face.container.parts import Broken, Container, EndsEarly, ImageFormat, Reader

__all__ = ["Container", "ImageFormat", "read_container"]

_READERS: tuple[tuple[ImageFormat, re.Pattern[bytes], Callable[[Reader], Container]], ...] = (
    ("JPEG", jpeg.SIGNATURE, jpeg.read),
    ("PNG", png.SIGNATURE, png.read),
    ("WEBP", webp.SIGNATURE, webp.read),
    ("GIF", gif.SIGNATURE, gif.read),
)


def read_container(data: bytes) -> Container:
    """Recognise a JPEG, PNG, WebP or GIF by its content and read its structure.

    Raises:
        UnreadableImageError: another kind of file, one that ends early, or one whose structure is broken.
    """
    for image_format, signature, read in _READERS:
        if signature.match(data):
            try:
                return read(Reader(data))
            except EndsEarly:
                raise UnreadableImageError(
                    f"the {image_format} picture is cut short: the file ends before its picture does; send it whole"
                ) from None
            except Broken as error:
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
