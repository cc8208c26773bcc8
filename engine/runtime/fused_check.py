"""Do the fused kernels compute what the formulas say? On random numbers, on the device at hand."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from engine.model import passes
from engine.model.math import rope
from engine.model.packing import Packing
from engine.model.passes import Passes

NUM_HEADS, HEAD_DIM, MLP_RATIO = 24, 128, 4
"""FLUX.1-dev's, so that what is built here is what its steps use."""

PACKINGS = (Packing(num_txt=3, num_img=(4, 4)), Packing(num_txt=3, num_img=(4, 2, 5)))


def largest_difference(
    fused: Passes, *, device: str, dtype: torch.dtype, num_heads: int = NUM_HEADS, head_dim: int = HEAD_DIM
) -> float:
    """The largest ‖fused − formula‖ ÷ ‖formula‖ over all passes, for samples of one size and of several."""
    generator = torch.Generator(device).manual_seed(0)
    return max(
        float((found.float() - expected.float()).norm() / expected.float().norm())
        for packing in PACKINGS
        for found, expected in _results(fused, packing, generator, dtype, num_heads, head_dim)
    )


@torch.inference_mode()
def _results(
    fused: Passes, packing: Packing, generator: torch.Generator, dtype: torch.dtype, num_heads: int, head_dim: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of what both ways give."""
    device, width = generator.device, num_heads * head_dim
    num_samples = len(packing.num_img)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    def stream(counts: tuple[int, ...], *inner: int) -> Tensor:
        return packing.pack([randn(count, *inner) for count in counts])

    def scales() -> tuple[Tensor, Tensor]:
        return 1 + 0.1 * randn(head_dim), 1 + 0.1 * randn(head_dim)

    x, y = stream(packing.num_joint, width), stream(packing.num_joint, width)
    shift, scale, gate = randn(num_samples, 3 * width).chunk(3, dim=-1)
    for rows in ((shift, scale), (scale, gate)):
        yield _both(fused, "modulate", x, *rows, packing.joint)
    for gates in (gate, randn(num_samples, 1).expand(-1, width)):
        yield _both(fused, "add_gated", x, gates, y, packing.joint)

    ids = stream(packing.num_joint, 3).float()
    pe = rope(ids, (head_dim // 4, head_dim // 4, head_dim // 2), 10_000)
    mlp_width = MLP_RATIO * width
    wide = stream(packing.num_joint, 3 * width + mlp_width)
    qkv, mlp = wide.split((3 * width, mlp_width), dim=-1)
    yield from _both_of_several(fused, "heads", qkv.unflatten(-1, (3, num_heads, -1)), scales(), pe)
    yield _both(fused, "gelu_beside", x, mlp)

    txt = randn(num_samples, packing.num_txt, 3, num_heads, head_dim)
    img = stream(packing.num_img, 3, num_heads, head_dim)
    yield from _both_of_several(fused, "joint_heads", txt, scales(), img, scales(), pe, packing)


def _both(fused: Passes, name: str, *arguments: object) -> tuple[Tensor, Tensor]:
    return getattr(fused, name)(*arguments), getattr(passes, name)(*arguments)


def _both_of_several(fused: Passes, name: str, *arguments: object) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(getattr(fused, name)(*arguments), getattr(passes, name)(*arguments), strict=True)
