"""What happens between the matrix products and the attention of a block, as formulas.

These are the definitions. On a GPU the same functions are single kernels (:mod:`engine.runtime.fused`): as written
here each makes several passes over memory, which at full size took a third of a step.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model.math import apply_rope
from engine.model.packing import Owners, Packing

NORM_EPS = 1e-6

Scales = tuple[Tensor, Tensor]
"""Weights of the norms of queries and keys, (head_dim,) each."""


class Passes(Protocol):
    """One way to compute them all. Streams are (B, S, D), or (1, ΣS, D) where sizes differ."""

    def modulate(self, x: Tensor, shift: Tensor, scale: Tensor, owners: Owners) -> Tensor:
        """Layer norm without weights, then scale and shift, (B, D), of the token's sample."""
        ...

    def add_gated(self, x: Tensor, gate: Tensor, y: Tensor, owners: Owners) -> Tensor:
        """``x`` + gate · ``y``; gates (B, D)."""
        ...

    def heads(self, qkv: Tensor, scales: Scales, pe: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, normed per head and rotated, and values, each (…, S, H, head_dim).

        Args:
            qkv: (…, S, 3, H, head_dim).
            pe: as :func:`engine.model.math.rope` returns it, laid out as ``qkv``.
        """
        ...

    def joint_heads(
        self, txt: Tensor, txt_scales: Scales, img: Tensor, img_scales: Scales, pe: Tensor, packing: Packing
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """:meth:`heads` of two streams, joined; and the image stream's queries normed but not rotated.

        Args:
            txt, img: each stream's (…, S, 3, H, head_dim).
            pe: laid out as the joint sequence.
        """
        ...

    def gelu_beside(self, attn: Tensor, mlp: Tensor) -> Tensor:
        """(…, A) and the tanh-GELU of (…, M), side by side: (…, A + M)."""
        ...


def modulate(x: Tensor, shift: Tensor, scale: Tensor, owners: Owners) -> Tensor:
    """See :class:`Passes`."""
    normed = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
    return torch.addcmul(owners.per_token(shift), normed, owners.per_token(1 + scale))


def add_gated(x: Tensor, gate: Tensor, y: Tensor, owners: Owners) -> Tensor:
    """See :class:`Passes`."""
    return torch.addcmul(x, owners.per_token(gate), y)


def heads(qkv: Tensor, scales: Scales, pe: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See :class:`Passes`."""
    q, k, v = _normed(qkv, scales)
    return apply_rope(q, pe), apply_rope(k, pe), v


def joint_heads(
    txt: Tensor, txt_scales: Scales, img: Tensor, img_scales: Scales, pe: Tensor, packing: Packing
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :class:`Passes`."""
    txt_q, txt_k, txt_v = _normed(txt, txt_scales)
    img_q, img_k, img_v = _normed(img, img_scales)
    q = apply_rope(packing.join(txt_q, img_q), pe)
    k = apply_rope(packing.join(txt_k, img_k), pe)
    return q, k, packing.join(txt_v, img_v), img_q


def gelu_beside(attn: Tensor, mlp: Tensor) -> Tensor:
    """See :class:`Passes`."""
    return torch.cat((attn, F.gelu(mlp, approximate="tanh")), dim=-1)


def _normed(qkv: Tensor, scales: Scales) -> tuple[Tensor, Tensor, Tensor]:
    """Root-mean-square norm of queries and keys over their channels (arXiv 1910.07467, 2010.04245)."""
    q, k, v = qkv.unbind(-3)
    q, k = (F.rms_norm(x, x.shape[-1:], scale, eps=NORM_EPS) for x, scale in zip((q, k), scales, strict=True))
    return q, k, v
