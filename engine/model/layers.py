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
from engine.model.math import apply_rope, timestep_embedding
from engine.model.packing import Packing

NORM_EPS = 1e-6
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
    """Root-mean-square norm over the last axis (arXiv 1910.07467); the weight is called ``scale`` in checkpoints."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape, same dtype."""
        return F.rms_norm(x, self.scale.shape, self.scale, eps=NORM_EPS)


class QKNorm(nn.Module):
    """Norms queries and keys per head (arXiv 2010.04245)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(dim)
        self.key_norm = RMSNorm(dim)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Both (B, S, H, head_dim)."""
        return self.query_norm(q), self.key_norm(k)


class SelfAttention(nn.Module):
    """The projections of one stream's attention; the attention itself is joint and happens in the block."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.norm = QKNorm(dim // num_heads)
        self.proj = nn.Linear(dim, dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, D) → normed queries, normed keys and values, each (B, S, H, head_dim); rope comes later."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        q, k = self.norm(q, k)
        return q, k, v


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


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights, then scale and shift; rows broadcast over tokens."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale)


def feed_forward(dim: int, mlp_dim: int) -> nn.Sequential:
    """Linear, tanh-GELU, linear: keys ``0`` and ``2`` in checkpoints."""
    return nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(approximate="tanh"), nn.Linear(mlp_dim, dim))


class ImageResidual(Protocol):
    """What an adapter adds to a double block's image stream."""

    def __call__(self, img_q: Tensor, prompt: BlockPrompt, packing: Packing) -> Tensor:
        """``img_q``: the image queries after QK-norm, before rope. Returns what is added after the block's MLP."""
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
        img_shift1, img_scale1, img_gate1, img_shift2, img_scale2, img_gate2 = (
            packing.per_img_token(row) for row in self.img_mod(vec)
        )
        txt_shift1, txt_scale1, txt_gate1, txt_shift2, txt_scale2, txt_gate2 = (
            row[:, None] for row in self.txt_mod(vec)
        )
        img_q, img_k, img_v = self.img_attn.project(modulate(img, img_shift1, img_scale1))
        txt_q, txt_k, txt_v = self.txt_attn.project(modulate(txt, txt_shift1, txt_scale1))

        attn = packing.self_attention(
            apply_rope(packing.join(txt_q, img_q), pe),
            apply_rope(packing.join(txt_k, img_k), pe),
            packing.join(txt_v, img_v),
        ).flatten(-2)
        txt_attn, img_attn = packing.split(attn)

        img = img + img_gate1 * self.img_attn.proj(img_attn)
        img = img + img_gate2 * self.img_mlp(modulate(img, img_shift2, img_scale2))
        if self.img_residual is not None and image_prompt is not None:
            img = img + self.img_residual(img_q, image_prompt, packing)

        txt = txt + txt_gate1 * self.txt_attn.proj(txt_attn)
        txt = txt + txt_gate2 * self.txt_mlp(modulate(txt, txt_shift2, txt_scale2))
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
        shift, scale, gate = (packing.per_joint_token(row) for row in self.modulation(vec))
        qkv, mlp = self.linear1(modulate(x, shift, scale)).split(
            (3 * self.hidden_size, self.linear2.in_features - self.hidden_size), dim=-1
        )
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        q, k = self.norm(q, k)
        attn = packing.self_attention(apply_rope(q, pe), apply_rope(k, pe), v).flatten(-2)
        out: Tensor = x + gate * self.linear2(torch.cat((attn, F.gelu(mlp, approximate="tanh")), dim=-1))
        return out


class LastLayer(nn.Module):
    """Final modulation and projection to latent channels; here the shift comes first in the checkpoint."""

    def __init__(self, hidden_size: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, img: Tensor, vec: Tensor, packing: Packing) -> Tensor:
        """``vec`` comes through SiLU already, so only the linear part of ``adaLN_modulation`` runs."""
        shift, scale = (packing.per_img_token(row) for row in self.adaLN_modulation[1](vec).chunk(2, dim=-1))
        out: Tensor = self.linear(modulate(img, shift, scale))
        return out
