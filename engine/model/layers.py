"""The blocks of the Flux transformer. Source: black-forest-labs/flux ``modules/layers.py``.

What differs from the source: every tensor comes with a :class:`~engine.model.packing.Packing`, so that samples of
different sizes share a pass; and a double block has a seam, ``img_residual``, where an adapter hangs itself in
(:mod:`engine.model.adapter`).
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.model.image_prompt import BlockPrompt
from engine.model.math import timestep_embedding
from engine.model.packing import Packing
from engine.model.passes import Scales
from engine.runtime.choice import passes_for

TIME_EMBEDDING_DIM = 256


class MLPEmbedder(nn.Module):
    """Two linear layers with SiLU between: (B, in_dim) → (B, hidden_dim)."""

    def __init__(self, in_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_dim, hidden_dim)
        self.out_layer = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.out_layer(F.silu(self.in_layer(x)))
        return out

    def embed_scalar(self, t: Tensor) -> Tensor:
        """A number a sample, (B,), through sinusoids."""
        return self.forward(timestep_embedding(t, TIME_EMBEDDING_DIM).to(self.in_layer.weight.dtype))


class RMSNorm(nn.Module):
    """Weight of a root-mean-square norm, called ``scale`` in checkpoints; the norm is :mod:`engine.model.passes`'."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))


class QKNorm(nn.Module):
    """Norms of queries and keys per head (arXiv 2010.04245)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(dim)
        self.key_norm = RMSNorm(dim)

    @property
    def scales(self) -> Scales:
        """Weights for queries and keys."""
        return self.query_norm.scale, self.key_norm.scale


class SelfAttention(nn.Module):
    """The projections of one stream's attention; the attention itself is joint and happens in the block."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.norm = QKNorm(dim // num_heads)
        self.proj = nn.Linear(dim, dim)

    def project(self, x: Tensor) -> Tensor:
        """(B, S, D) → queries, keys and values, (B, S, 3, H, head_dim), neither normed nor rotated."""
        qkv: Tensor = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        return qkv


class Modulation(nn.Module):
    """adaLN-zero parameters (arXiv 2212.09748): (B, D) → ``num`` rows of (B, D): shift, scale, gate, …"""

    def __init__(self, dim: int, num: int) -> None:
        super().__init__()
        self.num = num
        self.lin = nn.Linear(dim, num * dim)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        """``vec`` comes through SiLU already, once for all blocks."""
        rows: tuple[Tensor, ...] = self.lin(vec).chunk(self.num, dim=-1)
        return rows


def feed_forward(dim: int, mlp_dim: int) -> nn.Sequential:
    """Linear, tanh-GELU, linear: keys ``0`` and ``2`` in checkpoints."""
    return nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(approximate="tanh"), nn.Linear(mlp_dim, dim))


class ImageResidual(Protocol):
    """An adapter's share in a double block's image stream."""

    def __call__(self, img: Tensor, img_q: Tensor, prompt: BlockPrompt, packing: Packing) -> Tensor:
        """``img``, as it is after the block's MLP, with the adapter's share added. ``img_q``: the image queries after
        QK-norm, before rope."""
        ...


class DoubleStreamBlock(nn.Module):
    """Text and image streams with their own weights and one joint attention (MM-DiT, arXiv 2403.03206)."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, qkv_bias: bool) -> None:
        super().__init__()
        mlp_dim = int(hidden_size * mlp_ratio)
        self.img_mod = Modulation(hidden_size, 6)
        self.img_attn = SelfAttention(hidden_size, num_heads, qkv_bias)
        self.img_mlp = feed_forward(hidden_size, mlp_dim)
        self.txt_mod = Modulation(hidden_size, 6)
        self.txt_attn = SelfAttention(hidden_size, num_heads, qkv_bias)
        self.txt_mlp = feed_forward(hidden_size, mlp_dim)
        self.img_residual: ImageResidual | None = None

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        vec: Tensor,
        pe: Tensor,
        packing: Packing,
        image_prompt: BlockPrompt | None,
    ) -> tuple[Tensor, Tensor]:
        """``img`` as packed, ``txt`` (B, T, D), ``vec`` (B, D). ``image_prompt`` needs an injected adapter."""
        passes = passes_for(img)
        img_shift1, img_scale1, img_gate1, img_shift2, img_scale2, img_gate2 = self.img_mod(vec)
        txt_shift1, txt_scale1, txt_gate1, txt_shift2, txt_scale2, txt_gate2 = self.txt_mod(vec)

        q, k, v, img_q = passes.joint_heads(
            self.txt_attn.project(passes.modulate(txt, txt_shift1, txt_scale1, packing.txt)),
            self.txt_attn.norm.scales,
            self.img_attn.project(passes.modulate(img, img_shift1, img_scale1, packing.img)),
            self.img_attn.norm.scales,
            pe,
            packing,
        )
        txt_attn, img_attn = packing.split(packing.self_attention(q, k, v).flatten(-2))

        img = passes.add_gated(img, img_gate1, self.img_attn.proj(img_attn), packing.img)
        mlp = self.img_mlp(passes.modulate(img, img_shift2, img_scale2, packing.img))
        img = passes.add_gated(img, img_gate2, mlp, packing.img)
        if self.img_residual is not None and image_prompt is not None:
            img = self.img_residual(img, img_q, image_prompt, packing)

        txt = passes.add_gated(txt, txt_gate1, self.txt_attn.proj(txt_attn), packing.txt)
        mlp = self.txt_mlp(passes.modulate(txt, txt_shift2, txt_scale2, packing.txt))
        txt = passes.add_gated(txt, txt_gate2, mlp, packing.txt)
        return img, txt


class SingleStreamBlock(nn.Module):
    """One stream; attention and MLP in parallel from the same normed input (arXiv 2302.05442)."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.hidden_size = hidden_size
        mlp_dim = int(hidden_size * mlp_ratio)
        self.linear1 = nn.Linear(hidden_size, hidden_size * 3 + mlp_dim)
        self.linear2 = nn.Linear(hidden_size + mlp_dim, hidden_size)
        self.norm = QKNorm(hidden_size // num_heads)
        self.modulation = Modulation(hidden_size, 3)

    def forward(self, x: Tensor, vec: Tensor, pe: Tensor, packing: Packing) -> Tensor:
        """``x``: the joint sequence as packed; ``vec``: (B, D)."""
        passes = passes_for(x)
        shift, scale, gate = self.modulation(vec)
        qkv, mlp = self.linear1(passes.modulate(x, shift, scale, packing.joint)).split(
            (3 * self.hidden_size, self.linear2.in_features - self.hidden_size), dim=-1
        )
        q, k, v = passes.heads(qkv.unflatten(-1, (3, self.num_heads, -1)), self.norm.scales, pe)
        attn = packing.self_attention(q, k, v).flatten(-2)
        return passes.add_gated(x, gate, self.linear2(passes.gelu_beside(attn, mlp)), packing.joint)


class LastLayer(nn.Module):
    """Final modulation and projection to latent channels; here the shift comes first in the checkpoint."""

    def __init__(self, hidden_size: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, img: Tensor, vec: Tensor, packing: Packing) -> Tensor:
        """``vec`` comes through SiLU already, so only the linear part of ``adaLN_modulation`` runs."""
        shift, scale = self.adaLN_modulation[1](vec).chunk(2, dim=-1)
        out: Tensor = self.linear(passes_for(img).modulate(img, shift, scale, packing.img))
        return out
