"""Noise levels σ from 1 (noise) to 0 (picture). No torch: lists of floats.

Rectified flow takes ``x_σ = (1 − σ)·picture + σ·noise``; the network predicts ``d x/dσ``.
"""

from __future__ import annotations

import math

from engine.request import SchedulerName

COMFY_FLUX_SHIFT = 1.15
"""ComfyUI's ``ModelSamplingFlux`` default, whatever the size (comfy ``model_sampling.py``)."""

BASE_TOKENS, BASE_SHIFT = 256, 0.5
MAX_TOKENS, MAX_SHIFT = 4096, 1.15
"""The line on which the shift moves with the token count (black-forest-labs/flux ``sampling.py``)."""


def time_shift(mu: float, t: float) -> float:
    """σ(t) = e^μ / (e^μ + 1/t − 1), for t in (0, 1]: more steps at high noise for larger μ."""
    return math.exp(mu) / (math.exp(mu) + (1.0 / t - 1.0))


def resolution_shift(num_tokens: int) -> float:
    """μ for a number of image tokens: 0.5 at 256 (256²), 1.15 at 4096 (1024²), linear between and beyond."""
    slope = (MAX_SHIFT - BASE_SHIFT) / (MAX_TOKENS - BASE_TOKENS)
    return BASE_SHIFT + slope * (num_tokens - BASE_TOKENS)


def sigmas(scheduler: SchedulerName, *, num_steps: int, num_tokens: int) -> list[float]:
    """``num_steps`` + 1 noise levels, from 1.0 down to 0.0.

    ``simple`` is ComfyUI's KSampler with that scheduler: fixed shift. ``flux`` is BFL's and diffusers': the shift
    moves with the size. At 1024² they are the same.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    mu = COMFY_FLUX_SHIFT if scheduler == "simple" else resolution_shift(num_tokens)
    return [time_shift(mu, 1.0 - k / num_steps) for k in range(num_steps)] + [0.0]
