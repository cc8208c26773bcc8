"""Latents to pixels: diffusers' ``AutoencoderKL`` in FLUX.1's shape (16 channels at 1/8, no quant convolutions)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from engine.profile import AutoencoderParams


def build_autoencoder(params: AutoencoderParams) -> Any:
    """The whole autoencoder; serving needs its decoder only (see :func:`drop_encoder`)."""
    channels = tuple(params.ch * mult for mult in params.ch_mult)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=params.num_res_blocks,
        latent_channels=params.z_channels,
        norm_num_groups=params.norm_num_groups,
        scaling_factor=params.scale_factor,
        shift_factor=params.shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def drop_encoder(autoencoder: Any) -> Any:
    """Let go of the half that turns pixels into latents."""
    del autoencoder.encoder
    return autoencoder


class LatentDecoder:
    """Latents to sRGB."""

    def __init__(self, autoencoder: Any, params: AutoencoderParams) -> None:
        self.autoencoder = autoencoder
        self._scale = params.scale_factor
        self._shift = params.shift_factor

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """(B, z_channels, H/8, W/8) float32, as sampled, to (B, H, W, 3)."""
        z = (latents / self._scale + self._shift).to(self.autoencoder.dtype)
        pixels: Tensor = self.autoencoder.decode(z, return_dict=False)[0]  # (B, 3, H, W) in [-1, 1]
        levels = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        image: npt.NDArray[np.uint8] = levels.permute(0, 2, 3, 1).cpu().numpy()
        return image
