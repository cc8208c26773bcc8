"""Pictures for the face tests, all made from one photo or from nothing, in every dress a picture can come in."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ASTRONAUT_PATH = Path(__file__).parent.parent / "examples" / "astronaut.jpg"

TURNED_BACK = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an upright picture must be stored for EXIF's orientation to turn it upright again (EXIF 2.32, 4.6.4)."""


@cache
def astronaut() -> Image.Image:
    """One clear face, 512×512. Treat as read-only."""
    with Image.open(ASTRONAUT_PATH) as file:
        return file.convert("RGB")


def small(side_px: int = 64) -> Image.Image:
    """Smooth in both directions and not symmetric: turned or swapped copies differ, JPEG keeps it nearly exact."""
    ramp = np.linspace(0, 255, side_px)
    red, green = np.broadcast_to(ramp[None], (side_px, side_px)), np.broadcast_to(ramp[:, None], (side_px, side_px))
    blue = (red + green) / 4 + 32
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def with_orientation(upright: Image.Image, orientation: int, image_format: str, **options: Any) -> bytes:
    """A file stored turned, with the EXIF tag that turns it back."""
    back = TURNED_BACK[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if back is None else upright.transpose(back)
    return saved(stored, image_format, exif=exif, **options)


# --- PNG by hand: what Pillow does not write ------------------------------------------------------------------------

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png(values: np.ndarray[Any, Any], *, extra: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """``(H, W, C)`` uint8 or uint16 as PNG; C = 1 grey, 2 with alpha, 3 colours, 4 with alpha. ``extra``: chunks."""
    height, width, channels = values.shape
    depth = 8 * values.dtype.itemsize
    rows = values.astype(f">u{values.dtype.itemsize}").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(png_chunk(kind, payload) for kind, payload in chunks)


def bombs(width: int, height: int) -> dict[str, bytes]:
    """Small files whose headers promise ``width`` × ``height`` pixels."""
    png_header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000), 9)
    jpeg = saved(small(), "JPEG")
    sof = jpeg.index(b"\xff\xc0")
    sides_16_bit = min(width, 65535), min(height, 65535)
    gif = saved(small(), "GIF")
    webp = saved(small(), "WEBP", lossless=True)
    vp8x = b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + struct.pack("<4sI", b"VP8X", 10) + vp8x + webp[12:]
    return {
        "PNG": PNG_SIGNATURE + png_chunk(b"IHDR", png_header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b""),
        "JPEG": jpeg[: sof + 5] + struct.pack(">HH", *sides_16_bit[::-1]) + jpeg[sof + 9 :],
        "GIF": gif[:6] + struct.pack("<HH", *sides_16_bit) + gif[10:],
        "WEBP": b"RIFF" + struct.pack("<I", len(body)) + body,
    }
