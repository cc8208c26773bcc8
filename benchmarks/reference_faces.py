"""Reference pictures for load: photos from a folder, or many files of the repository's one photo.

To a service the latter are different people: every one is decoded, searched for a face, cropped and cached on its own.
"""

from __future__ import annotations

import io
import random
from pathlib import Path

from PIL import Image, ImageEnhance

from serve_app import data_url
from serve_app.files import read_picture

PHOTO = Path(__file__).parent.parent / "examples" / "astronaut.jpg"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_MAX_SHIFT_PX = 40  # of 512: the face stays in the picture


def reference_urls(num: int, folder: Path | None = None) -> list[str]:
    """Data URLs of ``num`` references; from a folder in the order of names, over again where it holds too few.

    Raises:
        FileNotFoundError: the folder holds no pictures.
        InputFileError: one of them can't be read.
    """
    if folder is None:
        return [data_url.build(data_url.Picture(data=variant(n), media_type="image/jpeg")) for n in range(num)]
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{folder} holds no {', '.join(SUFFIXES)}")
    urls = [data_url.build(read_picture(path)) for path in paths[:num]]
    return [urls[n % len(urls)] for n in range(num)]


def variant(number: int) -> bytes:
    """The photo a little moved, brightened and compressed anew, as JPEG. The same number, the same bytes."""
    if number == 0:
        return PHOTO.read_bytes()
    rng = random.Random(number)
    with Image.open(PHOTO) as photo:
        left, top = rng.randrange(_MAX_SHIFT_PX), rng.randrange(_MAX_SHIFT_PX)
        side_px = photo.width - _MAX_SHIFT_PX
        cut = photo.crop((left, top, left + side_px, top + side_px))
        buffer = io.BytesIO()
        ImageEnhance.Brightness(cut).enhance(rng.uniform(0.8, 1.2)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
