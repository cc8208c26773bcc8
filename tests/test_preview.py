"""Latents to colours by one matrix: the published one, and the one that is fitted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.errors import ModelLoadError
from engine.profile import DrawnSize, load_profile
from engine.request import RgbImage
from engine.sampling.latents import pack
from engine.sampling.preview import LatentPreview

SIZE = DrawnSize(width_px=128, height_px=64)
FACTORS = torch.randn((16, 3), generator=torch.Generator().manual_seed(1)) / 10
BIAS = torch.tensor([0.1, -0.1, 0.0])


def linear_decoder(latents: Tensor) -> RgbImage:
    """What a fit must find: every 8x8 block has its latent's colour, with grain that averages out."""
    colours = (latents.permute(1, 2, 0) @ FACTORS + BIAS).repeat_interleave(8, 0).repeat_interleave(8, 1)
    grain = 0.2 * (torch.arange(8) % 2 - 0.5).repeat(colours.shape[1] // 8)[None, :, None]
    image: RgbImage = (((colours + grain).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    return image


def picture_of(latents: Tensor) -> Tensor:
    colours = (latents.permute(1, 2, 0) @ FACTORS + BIAS).clamp(-1, 1)
    return (colours + 1) * 127.5


def latents(seed: int) -> Tensor:
    return torch.randn((16, 8, 16), generator=torch.Generator().manual_seed(seed))


def test_a_linear_decoder_is_found() -> None:
    preview = LatentPreview.fitted(linear_decoder, 16)
    for seed in range(3):
        found = preview.image(pack(latents(seed)), SIZE)
        assert found.shape == (8, 16, 3)
        assert np.abs(found.astype(float) - picture_of(latents(seed)).numpy()).max() <= 4.0


def test_the_same_decoder_gives_the_same_map() -> None:
    first, again = (LatentPreview.fitted(linear_decoder, 16) for _ in range(2))
    tokens = pack(latents(0))
    assert np.array_equal(first.image(tokens, SIZE), again.image(tokens, SIZE))


def test_the_published_map_is_that_of_the_profile_and_others_have_none() -> None:
    preview = LatentPreview.of(load_profile("flux-dev").autoencoder)
    assert preview is not None
    grey = preview.image(pack(torch.zeros(16, 8, 16)), SIZE)
    assert grey[0, 0].tolist() == [123, 118, 117], "the bias alone: -0.0329, -0.0718, -0.0851"
    only_first = torch.zeros(16, 8, 16)
    only_first[0] = 5.0
    assert preview.image(pack(only_first), SIZE)[0, 0].tolist() == [101, 134, 160]
    assert LatentPreview.of(load_profile("embedded").autoencoder) is None


def test_a_map_of_another_size_is_refused() -> None:
    autoencoder = load_profile("flux-dev").autoencoder
    with pytest.raises(ModelLoadError, match="48 and 3 numbers, got 47 and 3"):
        dataclasses.replace(autoencoder, preview_factors=autoencoder.preview_factors[:-1])
    with pytest.raises(ModelLoadError, match="got 48 and 0"):
        dataclasses.replace(autoencoder, preview_bias=())
