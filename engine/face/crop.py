"""Square crops for the CLIP encoder: around a face, or the middle of the whole picture."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from engine.face.detect import FaceBox
from engine.request import RgbImage


def square_crop(image: RgbImage, box: FaceBox, *, margin: float, size_px: int) -> RgbImage:
    """A square around ``box`` that contains all of it, resampled to ``size_px``.

    The square is centred on the box where the picture has room and moved inwards where it has not. In a picture too
    narrow for the margin, the margin shrinks; only where the box itself is longer than the picture's short side are
    edge pixels repeated, because streaks are nothing the encoder has seen in training.

    Args:
        image: ``(H, W, 3)`` uint8.
        box: inside ``image``.
        margin: added on each side of the box's longer side, as a fraction of it; 0 or more.
        size_px: side of the result.

    Returns:
        ``(size_px, size_px, 3)`` uint8.
    """
    if margin < 0.0 or size_px < 1:
        raise ValueError(f"margin must not be negative and size_px must be positive, got {margin} and {size_px}")
    height_px, width_px = image.shape[:2]
    box_side = max(box.width_px, box.height_px)
    side = min(box_side * (1 + 2 * margin), max(box_side, min(width_px, height_px)))
    left = _placed(box.left_px + box.width_px / 2, side, width_px)
    top = _placed(box.top_px + box.height_px / 2, side, height_px)
    missing_px = math.ceil(max(0.0, side - min(width_px, height_px)))
    if missing_px:
        image = np.pad(image, ((missing_px, missing_px), (missing_px, missing_px), (0, 0)), mode="edge")
        left, top = left + missing_px, top + missing_px
    return _resampled(image, (left, top, left + side, top + side), size_px)


def whole_picture(image: RgbImage, *, size_px: int) -> RgbImage:
    """The picture as CLIP's own preprocessing takes it: short side to ``size_px``, then the middle square.

    Same geometry and filter as transformers' CLIPImageProcessor; its result, without resampling what is cut off.

    Args:
        image: ``(H, W, 3)`` uint8.
        size_px: side of the result; 224 for ViT-L/14.

    Returns:
        ``(size_px, size_px, 3)`` uint8.
    """
    if size_px < 1:
        raise ValueError(f"size_px must be positive, got {size_px}")
    height_px, width_px = image.shape[:2]
    short_px = min(height_px, width_px)
    # Rounded down to whole pixels, of the resized picture and of the crop in it, as CLIPImageProcessor does.
    resized_width_px, resized_height_px = size_px * width_px // short_px, size_px * height_px // short_px
    left_px, top_px = (resized_width_px - size_px) // 2, (resized_height_px - size_px) // 2
    x, y = width_px / resized_width_px, height_px / resized_height_px
    return _resampled(image, (left_px * x, top_px * y, (left_px + size_px) * x, (top_px + size_px) * y), size_px)


def _placed(centre: float, side: float, length_px: int) -> float:
    """Start of a stretch of ``side`` around ``centre``, moved into 0 … ``length_px`` (or around it, if longer)."""
    room = length_px - side
    return min(max(centre - side / 2, min(0.0, room)), max(0.0, room))


_BICUBIC_SUPPORT = 2  # source pixels on either side, times the reduction: Pillow src/libImaging/Resample.c


def _resampled(image: RgbImage, region: tuple[float, float, float, float], size_px: int) -> RgbImage:
    """``region`` (left, top, right, bottom) of ``image``, antialiased bicubic, ``(size_px, size_px, 3)``.

    Only the part the filter reads is handed to Pillow, which would otherwise copy a whole photo for every crop.
    """
    left, top, right, bottom = region
    height_px, width_px = image.shape[:2]
    reach_x = _BICUBIC_SUPPORT * max(1.0, (right - left) / size_px) + 1
    reach_y = _BICUBIC_SUPPORT * max(1.0, (bottom - top) / size_px) + 1
    x0, x1 = max(0, math.floor(left - reach_x)), min(width_px, math.ceil(right + reach_x))
    y0, y1 = max(0, math.floor(top - reach_y)), min(height_px, math.ceil(bottom + reach_y))
    part = Image.fromarray(np.ascontiguousarray(image[y0:y1, x0:x1]))
    inner = (
        max(0.0, left - x0),
        max(0.0, top - y0),
        min(float(part.width), right - x0),
        min(float(part.height), bottom - y0),
    )
    return np.array(part.resize((size_px, size_px), Image.Resampling.BICUBIC, box=inner))
