"""Schedules, noise and packing against diffusers and against their own laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline, calculate_shift
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from engine.profile import DrawnSize
from engine.request import SchedulerName
from engine.sampling import guidance, latents, schedule

SIZES = [DrawnSize(width_px=width, height_px=height) for width, height in ((256, 256), (1024, 1024), (768, 1344))]


def diffusers_sigmas(num_steps: int, mu: float) -> list[float]:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    # As FluxPipeline calls it: linear sigmas in, shifted by mu.
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps).tolist(), mu=mu)
    return [float(sigma) for sigma in scheduler.sigmas]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size.width_px}x{size.height_px}")
@pytest.mark.parametrize("num_steps", [1, 4, 20, 28, 50])
def test_flux_schedule_equals_diffusers_dynamic_shift(size: DrawnSize, num_steps: int) -> None:
    ours = schedule.sigmas("flux", num_steps=num_steps, num_tokens=size.num_tokens)
    theirs = diffusers_sigmas(num_steps, calculate_shift(size.num_tokens, 256, 4096, 0.5, 1.15))
    assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("num_steps", [1, 4, 20, 50])
def test_simple_schedule_is_comfyui_s_formula_at_every_size(num_steps: int) -> None:
    # comfy model_sampling.py flux_time_shift(1.15, 1.0, t), samplers.py simple_scheduler
    expected = [math.exp(1.15) / (math.exp(1.15) + (1 / (1 - k / num_steps) - 1)) for k in range(num_steps)] + [0.0]
    for size in SIZES:
        assert schedule.sigmas("simple", num_steps=num_steps, num_tokens=size.num_tokens) == pytest.approx(expected)


def test_both_schedules_agree_at_1024_and_differ_elsewhere() -> None:
    def both(num_tokens: int) -> list[list[float]]:
        names: tuple[SchedulerName, ...] = ("simple", "flux")
        return [schedule.sigmas(name, num_steps=20, num_tokens=num_tokens) for name in names]

    simple, flux = both(4096)
    assert simple == pytest.approx(flux)
    simple, flux = both(1024)
    assert simple != pytest.approx(flux, abs=1e-2)


@given(st.sampled_from(["simple", "flux"]), st.integers(1, 100), st.integers(1, 20_000))
def test_noise_levels_fall_from_one_to_zero(name: SchedulerName, num_steps: int, num_tokens: int) -> None:
    sigmas = schedule.sigmas(name, num_steps=num_steps, num_tokens=num_tokens)
    assert len(sigmas) == num_steps + 1
    assert (sigmas[0], sigmas[-1]) == (1.0, 0.0)
    assert all(a > b for a, b in itertools.pairwise(sigmas))


def test_noise_is_the_seed_s_alone_and_as_comfyui_draws_it() -> None:
    size = DrawnSize(width_px=64, height_px=32)
    torch.manual_seed(7)
    theirs = torch.randn(1, 16, 4, 8)  # comfy sample.py prepare_noise: global CPU generator after manual_seed
    assert torch.equal(latents.noise(7, size, 16), theirs[0])
    assert not torch.equal(latents.noise(8, size, 16), theirs[0])


@given(st.integers(1, 6), st.integers(1, 6))
def test_packing_equals_diffusers_and_unpacking_undoes_it(rows: int, columns: int) -> None:
    size = DrawnSize(width_px=16 * columns, height_px=16 * rows)
    picture = torch.randn(16, *latents.latent_shape(size))
    packed = latents.pack(picture)
    theirs = FluxPipeline._pack_latents(picture[None], 1, 16, *latents.latent_shape(size))
    assert torch.equal(packed, theirs[0])
    assert torch.equal(latents.unpack(packed, size), picture)
    ids = FluxPipeline._prepare_latent_image_ids(1, rows, columns, "cpu", torch.float32)
    assert torch.equal(latents.position_ids(size), ids)


def test_guidance_one_is_the_positive_pass_and_larger_extrapolates() -> None:
    positive, negative = torch.tensor([2.0]), torch.tensor([1.0])
    assert guidance.guided(positive, None, 1.0) is positive
    assert guidance.guided(positive, negative, 1.0) == positive
    assert guidance.guided(positive, negative, 3.0) == torch.tensor([4.0])


def test_euler_integrates_a_straight_flow_exactly() -> None:
    picture, noise = torch.randn(5, 64), torch.randn(5, 64)
    sigmas = schedule.sigmas("simple", num_steps=7, num_tokens=5)
    x = noise
    for sigma, sigma_next in itertools.pairwise(sigmas):
        x = guidance.euler_step(x, noise - picture, sigma=sigma, sigma_next=sigma_next)
    assert torch.allclose(x, picture, atol=1e-5)
