"""Reference crops on the device: the square that the face stage would cut, made to look like many cameras took it.

The model learns from drawn people and is shown photos. What a photo changes about a face without changing the person
(light balance, sharpness, noise, what is behind) is changed here at random, so that the encoder learns to look past it.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model.clip_vision import CLIP_MEAN, CLIP_STD

MARGIN = 0.35
"""Around the face box, as :class:`engine.face.prepare.FacePreparer`'s default."""

SIZE_PX = 224

TILT = 0.09
"""Heads, and cameras, are held at a slant: standard deviation in radians; the drawn people hardly are."""

SHARPNESS = (0.36, 0.62)
"""Soft crops come from pictures of so many of their pixels a side."""


def reference_crops(
    images: Tensor, faces: Tensor, generator: torch.Generator | None, *, size_px: int = SIZE_PX
) -> Tensor:
    """Crops as CLIP takes them.

    Args:
        images: (B, H, W, 3) uint8.
        faces: (B, 3) centre x, centre y, side of the face box in pixels.
        generator: for jitter and changes of look; None for the plain crop.

    Returns:
        (B, 3, size_px, size_px) float32, CLIP's normalisation.
    """
    # In training on a GPU half precision: a batch is a third of a gigabyte otherwise, read and written thirty times.
    dtype = torch.float16 if images.is_cuda and generator is not None else torch.float32
    pixels = images.permute(0, 3, 1, 2).to(dtype) / 255
    centre, side = faces[:, :2], faces[:, 2]
    flip, tilt = torch.ones_like(side), torch.zeros_like(side)
    if generator is not None:
        side = side * torch.exp(0.10 * _normal(faces[:, 2].shape, generator))
        centre = centre + 0.05 * side[:, None] * _normal(centre.shape, generator)
        flip = torch.where(_uniform(side.shape, generator) < 0.25, -1.0, 1.0)
        tilt = TILT * _normal(side.shape, generator)
    pixels = _squares(pixels, centre, side * (1 + 2 * MARGIN), flip, tilt, size_px)
    if generator is not None:
        pixels = _as_photographed(_before_another_background(pixels, generator), generator)
    return (pixels.float() - _constant(CLIP_MEAN, pixels.device)) / _constant(CLIP_STD, pixels.device)


@functools.cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(1, 3, 1, 1), kept on the device: a copy from the host can't be part of a recorded step."""
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


def _squares(pixels: Tensor, centre: Tensor, side: Tensor, flip: Tensor, tilt: Tensor, size_px: int) -> Tensor:
    """Squares moved inwards and shrunk to fit, as :func:`engine.face.crop.square_crop` does; then turned by ``tilt``
    radians and mirrored where ``flip`` is -1."""
    limit = float(pixels.shape[-1])
    side = side.clamp(max=limit)
    half = side[:, None] / 2
    centre = torch.minimum(torch.maximum(centre, half), limit - half)
    theta = torch.zeros(len(pixels), 2, 3, device=pixels.device)
    theta[:, 0, 0] = flip * tilt.cos() * side / limit
    theta[:, 1, 0] = flip * tilt.sin() * side / limit
    theta[:, 0, 1] = -tilt.sin() * side / limit
    theta[:, 1, 1] = tilt.cos() * side / limit
    theta[:, :, 2] = 2 * centre / limit - 1
    grid = F.affine_grid(theta, [len(pixels), 3, size_px, size_px], align_corners=False).to(pixels.dtype)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _before_another_background(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Some crops keep an ellipse around the head and get another crop's surroundings, or a plain colour."""
    count, _, size, _ = pixels.shape
    axis = torch.linspace(-1, 1, size, device=pixels.device)
    radius = torch.sqrt((axis[None, :] / 0.78) ** 2 + ((axis[:, None] + 0.02) / 0.98) ** 2)
    keep = torch.sigmoid((1 - radius) * 18)[None, None]
    keep = keep.to(pixels.dtype)
    plain = _uniform((count, 3, 1, 1), generator, pixels.dtype).expand_as(pixels)
    is_plain = _rows(count, 0.5, generator)
    behind = torch.where(is_plain, plain, pixels.roll(1, 0))
    return torch.where(_rows(count, 0.15, generator), keep * pixels + (1 - keep) * behind, pixels)


def _as_photographed(pixels: Tensor, generator: torch.Generator) -> Tensor:
    count, dtype = len(pixels), pixels.dtype
    balance = 1 + 0.06 * _normal((count, 3, 1, 1), generator, dtype)
    gamma = torch.exp(0.15 * _normal((count, 1, 1, 1), generator, dtype))
    contrast = torch.exp(0.12 * _normal((count, 1, 1, 1), generator, dtype))
    brightness = 0.04 * _normal((count, 1, 1, 1), generator, dtype)
    saturation = 1 + 0.2 * _normal((count, 1, 1, 1), generator, dtype)
    pixels = (pixels * balance).clamp(1e-4, 1) ** gamma
    pixels = (pixels - 0.5) * contrast + 0.5 + brightness
    gray = pixels.mean(1, keepdim=True)
    pixels = gray + saturation * (pixels - gray)
    for share in SHARPNESS:
        small_px = int(pixels.shape[-1] * share)
        small = F.interpolate(pixels, size=(small_px, small_px), mode="area")
        blurred = F.interpolate(small, size=pixels.shape[-2:], mode="bilinear")
        pixels = torch.where(_rows(count, 0.18, generator), blurred, pixels)
    strength = 0.04 * _uniform((count, 1, 1, 1), generator, dtype) * _rows(count, 0.4, generator)
    return (pixels + strength * _normal(pixels.shape, generator, dtype)).clamp(0, 1)


def _rows(count: int, share: float, generator: torch.Generator) -> Tensor:
    """(count, 1, 1, 1) bool: which rows a change befalls."""
    return _uniform((count, 1, 1, 1), generator) < share


def _uniform(
    shape: tuple[int, ...] | torch.Size, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=dtype)


def _normal(
    shape: tuple[int, ...] | torch.Size, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
