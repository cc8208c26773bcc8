"""``data:image/png;base64,…``: the only form in which pictures come in, and their form in JSON answers."""

from __future__ import annotations

import base64
import dataclasses
import re
from typing import Final

MEDIA_TYPES: Final = ("image/jpeg", "image/png", "image/webp", "image/gif")
"""What a reference picture may be. GIF beyond the original three: its first frame is taken."""

_ALIASES: Final = {"image/jpg": "image/jpeg"}
"""Not a registered type, but what ``"image/" + file_extension`` gives, and unmistakable."""

_HEAD = re.compile(r"data:([a-z]+/[a-z0-9.+-]+);base64,", re.IGNORECASE)
_MAX_HEAD_CHARS: Final = 64


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An encoded picture and its declared media type."""

    data: bytes
    media_type: str


def parse(url: str) -> Picture:
    """The picture in a data URL.

    Raises:
        ValueError: not a data URL, not of an accepted media type, not strict base64, or empty. The message says what
            to change and never repeats the value, which may be a path or a megabyte.
    """
    if not url[:5].lower() == "data:":
        raise ValueError(
            "must be a data URL, data:image/jpeg;base64,…; paths and links are not read: send the picture itself"
        )
    head = _HEAD.match(url[:_MAX_HEAD_CHARS])
    if head is None:
        raise ValueError("must start with data:image/<jpeg|png|webp|gif>;base64, and nothing between or before")
    declared = head.group(1).lower()
    media_type = _ALIASES.get(declared, declared)
    if media_type not in MEDIA_TYPES:
        raise ValueError(f"must be one of {', '.join(MEDIA_TYPES)}, not {declared}")
    try:
        data = _strictly_decoded(url[head.end() :])
    except ValueError as error:
        raise ValueError(
            "has broken base64 after the comma: use the standard alphabet with its padding, and no line breaks"
        ) from error
    if not data:
        raise ValueError("holds no bytes after the comma")
    return Picture(data=data, media_type=media_type)


def _strictly_decoded(text: str) -> bytes:
    """RFC 4648, section 4, to the letter. Python's strict mode still takes ``AAAA====``."""
    num_padding = len(text) - len(text.rstrip("="))
    if len(text) % 4 or num_padding > 2:
        raise ValueError("wrong length or padding")
    return base64.b64decode(text.encode("ascii"), validate=True)


def build(picture: Picture) -> str:
    """The data URL of a picture; ``parse(build(picture)) == picture``."""
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.data).decode('ascii')}"
