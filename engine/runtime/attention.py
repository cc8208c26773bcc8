"""Attention behind one function, so that kernels can change without the network noticing."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

CUDA_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""Fastest first. At 4608 tokens on an H100 cuDNN takes 0.435 ms a block, FlashAttention-2 0.828 (docs/log.md)."""

_forced: contextvars.ContextVar[list[SDPBackend] | None] = contextvars.ContextVar("attention_backends", default=None)


@contextlib.contextmanager
def forced_backends(backends: list[SDPBackend]) -> Iterator[None]:
    """Allow only these kernels inside the block: for tests and benchmarks."""
    token = _forced.set(backends)
    try:
        yield
    finally:
        _forced.reset(token)


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention without mask. Tensors are (B, S, H, head_dim), as projections leave them; so is the result."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    backends = _forced.get() or (CUDA_BACKENDS if q.is_cuda else None)
    if backends is None:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    with sdpa_kernel(backends, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
