"""The smallest profile with every feature, and random weights, for tests that need real networks in milliseconds."""

from __future__ import annotations

import dataclasses

import torch

from engine.profile import (
    AutoencoderParams,
    ClipTextParams,
    ClipVisionParams,
    FluxParams,
    ModelProfile,
    SizePolicy,
    T5Params,
    load_profile,
)


def tiny_profile() -> ModelProfile:
    """Two double and two single blocks of width 48; pictures from 32 px; head count and axes as odd as allowed."""
    return dataclasses.replace(
        load_profile("flux-dev"),
        name="tiny",
        size=SizePolicy(
            native_width_px=64,
            native_height_px=64,
            draw="requested",
            min_side_px=32,
            max_side_px=256,
            max_pixels=256 * 256,
        ),
        transformer=FluxParams(
            in_channels=64,
            vec_in_dim=32,
            context_in_dim=24,
            hidden_size=48,
            mlp_ratio=4.0,
            num_heads=3,
            depth=2,
            depth_single_blocks=2,
            axes_dim=(4, 6, 6),
            theta=10_000,
            qkv_bias=True,
            guidance_embed=True,
        ),
        t5=T5Params(vocab_size=32_128, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3, max_tokens=12),
        clip=ClipTextParams(
            vocab_size=49_408,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_tokens=77,
        ),
        clip_vision=ClipVisionParams(
            image_size=224,
            patch_size=56,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=20,
        ),
        autoencoder=AutoencoderParams(
            ch=8,
            ch_mult=(1, 2, 2, 2),
            num_res_blocks=1,
            z_channels=16,
            scale_factor=0.3611,
            shift_factor=0.1159,
            norm_num_groups=4,
        ),
    )


def randomised(module: torch.nn.Module, seed: int) -> None:
    """Every parameter random, so that no term of the network is zero or one by its initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(values + 1 if name.endswith("scale") else values)
