"""Latents as tokens: noise, packing 2×2 patches, positions. Source: black-forest-labs/flux ``sampling.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.profile import DrawnSize

LATENT_STRIDE_PX = 8
PATCH = 2


def latent_shape(size: DrawnSize) -> tuple[int, int]:
    """Rows and columns of the latent picture."""
    return size.height_px // LATENT_STRIDE_PX, size.width_px // LATENT_STRIDE_PX


def noise(seed: int, size: DrawnSize, num_channels: int) -> Tensor:
    """Standard normal latents (num_channels, H/8, W/8), float32 on the CPU.

    Drawn there whatever the device, one generator a request: the same seed gives the same noise on every machine
    and in any company, and the same as ComfyUI's and BFL's ``torch.manual_seed`` on the CPU.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn((1, num_channels, *latent_shape(size)), generator=generator, dtype=torch.float32)[0]


def pack(latents: Tensor) -> Tensor:
    """(C, h, w) → (h/2 · w/2, 4C): 2×2 patches in reading order, channels first within a patch."""
    channels, rows, columns = latents.shape
    patches = latents.reshape(channels, rows // PATCH, PATCH, columns // PATCH, PATCH)
    return patches.permute(1, 3, 0, 2, 4).reshape(-1, channels * PATCH * PATCH)


def unpack(tokens: Tensor, size: DrawnSize) -> Tensor:
    """The inverse of :func:`pack`."""
    rows, columns = latent_shape(size)
    patches = tokens.reshape(rows // PATCH, columns // PATCH, -1, PATCH, PATCH)
    return patches.permute(2, 0, 3, 1, 4).reshape(-1, rows, columns)


def position_ids(size: DrawnSize) -> Tensor:
    """(L, 3) float32: (0, row, column) of every image token."""
    rows, columns = (side // PATCH for side in latent_shape(size))
    grid = torch.zeros(rows, columns, 3)
    grid[..., 1] = torch.arange(rows)[:, None]
    grid[..., 2] = torch.arange(columns)[None, :]
    return grid.reshape(-1, 3)
