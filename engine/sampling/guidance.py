"""True classifier-free guidance (arXiv 2207.12598) and the Euler step, per request."""

from __future__ import annotations

from torch import Tensor


def guided(positive: Tensor, negative: Tensor | None, cfg: float) -> Tensor:
    """``neg + cfg · (pos − neg)``; without a negative pass, the positive velocity."""
    if negative is None:
        return positive
    return negative + cfg * (positive - negative)


def euler_step(latents: Tensor, velocity: Tensor, *, sigma: float, sigma_next: float) -> Tensor:
    """One explicit step along the flow, in float32 whatever the network's precision."""
    return latents + (sigma_next - sigma) * velocity.float()
