"""The formulas of the Flux transformer, without parameters.

Source: black-forest-labs/flux ``math.py`` and ``modules/layers.py``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TIME_FACTOR = 1000.0
"""Timesteps and guidance are in [0, 1] and [0, …); the sinusoids want them times a thousand (flux ``layers.py``)."""

MAX_PERIOD = 10_000.0


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding, cosines first. ``t``: (B,) float32. Returns (B, dim) float32."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = (TIME_FACTOR * t.float())[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def rope(ids: Tensor, axes_dim: tuple[int, ...], theta: int) -> Tensor:
    """Rotary position table. RoFormer (arXiv 2104.09864), one group of channels an axis.

    Args:
        ids: (B, S, len(axes_dim)) positions.

    Returns:
        (B, S, 1, head_dim / 2) complex64: e^{i·angle}, broadcast over heads. Angles are taken in float64.
    """
    angles = []
    for axis, dim in enumerate(axes_dim):
        exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=ids.device) / dim
        angles.append(ids[..., axis].to(torch.float64)[..., None] * theta**-exponents)
    angle = torch.cat(angles, dim=-1)[:, :, None]
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def apply_rope(x: Tensor, pe: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs. ``x``: (B, S, H, head_dim); ``pe``: see :func:`rope`.

    A pair is a complex number and a rotation one product, in float32: two thirds fewer passes over memory than sines
    and cosines apart. A compiler fuses the latter into a single pass and knows no complex numbers, so it gets those.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        (even, odd), (cos, sin) = pairs.unbind(-1), torch.view_as_real(pe).unbind(-1)
        rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    else:
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * pe)
    return rotated.flatten(-2).type_as(x)
