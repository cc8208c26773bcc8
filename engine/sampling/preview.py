"""A cheap look at a picture that is not done: latents to colours by one matrix, at an eighth of its size.

Every latent pixel becomes one pixel by a linear map from 16 channels to RGB. For FLUX.1's autoencoder the map that
ComfyUI fitted on photographs stands in the profile; for any other it is fitted at warm-up, by least squares over what
the decoder makes of smooth random latents.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.profile import AutoencoderParams, DrawnSize
from engine.request import RgbImage
from engine.sampling.latents import LATENT_STRIDE_PX, unpack

FIT_SIDE = 16
"""Rows and columns of a latent picture to fit on: 128 pixels square."""

FIT_SCALES = (1, 2, 4, 8)
"""Random latents are drawn this many times smaller and stretched: fine grain, patches, broad fields."""

FIT_STD = 0.4
"""Of the random latents. Those of pictures have 0.6 to 1, but random ones of that size mean colours beyond black and
white, and a map fitted where the decoder saturates is too pale. On a photo through the embedded model's autoencoder:
off by 23 of 255 levels when fitted at 1.0, 16 at 0.6, 14 at 0.4; the best linear map for that photo is off by 9."""

FIT_RIDGE = 1e-3


class LatentPreview:
    """The map.

    Args:
        factors: (z_channels, 3), colours in [-1, 1] a unit of each latent channel, as sampled.
        bias: (3,).
    """

    def __init__(self, factors: Tensor, bias: Tensor) -> None:
        self._factors = factors.float()
        self._bias = bias.float()

    @staticmethod
    def of(params: AutoencoderParams) -> LatentPreview | None:
        """The map that a profile brings along; None where it brings none."""
        if not params.preview_factors:
            return None
        return LatentPreview(torch.tensor(params.preview_factors).reshape(-1, 3), torch.tensor(params.preview_bias))

    @staticmethod
    def fitted(decode: Callable[[Tensor], RgbImage], num_channels: int, *, seed: int = 0) -> LatentPreview:
        """Fit the map to a decoder, (C, h, w) → (8h, 8w, 3) in 0-255, by ridge regression. Deterministic."""
        generator = torch.Generator().manual_seed(seed)
        inputs: list[Tensor] = []
        colours: list[Tensor] = []
        for scale in FIT_SCALES:
            side = FIT_SIDE // scale
            coarse = torch.randn((1, num_channels, side, side), generator=generator)
            latents = F.interpolate(coarse, size=(FIT_SIDE, FIT_SIDE), mode="bilinear")[0]
            latents *= FIT_STD / latents.std()
            pixels = torch.from_numpy(decode(latents).astype(np.float32)) / 127.5 - 1.0
            inputs.append(latents.permute(1, 2, 0).reshape(-1, num_channels))
            colours.append(F.avg_pool2d(pixels.permute(2, 0, 1), LATENT_STRIDE_PX).permute(1, 2, 0).reshape(-1, 3))
        x = torch.cat((torch.cat(inputs), torch.ones(len(inputs) * FIT_SIDE**2, 1)), dim=1)  # (N, C + 1)
        gram = x.T @ x + FIT_RIDGE * len(x) * torch.eye(num_channels + 1)
        solved = torch.linalg.solve(gram, x.T @ torch.cat(colours))
        return LatentPreview(solved[:-1], solved[-1])

    def image(self, tokens: Tensor, size: DrawnSize) -> RgbImage:
        """Noise-free tokens (L, 4C) to (H/8, W/8, 3)."""
        latents = unpack(tokens, size).permute(1, 2, 0).float()  # (h, w, C)
        colours = latents @ self._factors.to(latents.device) + self._bias.to(latents.device)
        levels = ((colours.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        image: RgbImage = levels.cpu().numpy()
        return image
