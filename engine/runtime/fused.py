"""The passes of :mod:`engine.model.passes` as one kernel each, in Triton.

Every kernel reads its inputs once, computes in float32 and writes its output once; a token's result depends on that
token alone, so a sample's does not depend on its company. Rows of scales, shifts and gates stay one a sample; kernels
find a token's row by its owner. For inference: there are no gradients.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.model import passes
from engine.model.packing import Owners, Packing
from engine.model.passes import NORM_EPS, Scales

BLOCK_HEADS = 8
"""Heads of one program: 8 × 128 channels are 16 bytes for each of its 128 threads."""

GELU_BLOCK = 1024


def modulate(x: Tensor, shift: Tensor, scale: Tensor, owners: Owners) -> Tensor:
    """See :class:`engine.model.passes.Passes`."""
    x = x.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    assert shift.stride() == scale.stride() and shift.stride(1) == 1, "halves of one row"
    _modulate[(x.numel() // width,)](
        x, shift, scale, owners.index(shift), out, shift.stride(0), width, NORM_EPS, triton.next_power_of_2(width)
    )
    return out


@triton.jit
def _modulate(x, shift, scale, owners, out, row_stride, width, eps, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(owners + token) * row_stride
    column = tl.arange(0, BLOCK)
    is_in = column < width
    values = tl.load(x + token * width + column, mask=is_in, other=0.0).to(tl.float32)
    centred = tl.where(is_in, values - tl.sum(values, axis=0) / width, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)
    factor = 1.0 + tl.load(scale + row + column, mask=is_in, other=0.0).to(tl.float32)
    offset = tl.load(shift + row + column, mask=is_in, other=0.0).to(tl.float32)
    tl.store(out + token * width + column, normed * factor + offset, mask=is_in)


def add_gated(x: Tensor, gate: Tensor, y: Tensor, owners: Owners) -> Tensor:
    """See :class:`engine.model.passes.Passes`. A gate may be one number a sample, expanded."""
    x, y = x.contiguous(), y.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    _add_gated[(x.numel() // width,)](
        x, gate, y, owners.index(gate), out, gate.stride(0), gate.stride(1), width, triton.next_power_of_2(width)
    )
    return out


@triton.jit
def _add_gated(x, gate, y, owners, out, row_stride, column_stride, width, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(owners + token) * row_stride
    column = tl.arange(0, BLOCK)
    is_in = column < width
    place = token * width + column
    gates = tl.load(gate + row + column * column_stride, mask=is_in, other=0.0).to(tl.float32)
    added = gates * tl.load(y + place, mask=is_in, other=0.0).to(tl.float32)
    tl.store(out + place, tl.load(x + place, mask=is_in, other=0.0).to(tl.float32) + added, mask=is_in)


def heads(qkv: Tensor, scales: Scales, pe: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See :class:`engine.model.passes.Passes`. Values stay where they are."""
    if not _is_power_of_two(qkv.shape[-1]):
        return passes.heads(qkv, scales, pe)
    v = qkv.select(-3, 2)
    q, k = (torch.empty(v.shape, dtype=v.dtype, device=v.device) for _ in range(2))
    _launch_heads(qkv, scales, pe, q, k)
    return q, k, v


def joint_heads(
    txt: Tensor, txt_scales: Scales, img: Tensor, img_scales: Scales, pe: Tensor, packing: Packing
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :class:`engine.model.passes.Passes`. Both streams are written to where they belong in the joint sequence."""
    if not _is_power_of_two(txt.shape[-1]):
        return passes.joint_heads(txt, txt_scales, img, img_scales, pe, packing)
    q, k, v = (torch.empty((*pe.shape[:2], *txt.shape[-2:]), dtype=txt.dtype, device=txt.device) for _ in range(3))
    img_q = torch.empty((*img.shape[:2], *img.shape[-2:]), dtype=img.dtype, device=img.device)
    txt_places, img_places = packing.places_in_joint(txt)
    _launch_heads(txt, txt_scales, pe, q, k, v, places=txt_places)
    _launch_heads(img, img_scales, pe, q, k, v, places=img_places, unrotated_q=img_q)
    return q, k, v, img_q


def _is_power_of_two(head_dim: int) -> bool:
    """Blocks are; FLUX.1-dev's heads have 128 channels. Other heads go by the formulas."""
    return head_dim & (head_dim - 1) == 0


def _launch_heads(
    qkv: Tensor,
    scales: Scales,
    pe: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor | None = None,
    *,
    places: Tensor | None = None,
    unrotated_q: Tensor | None = None,
) -> None:
    *outer, _, num_heads, head_dim = qkv.shape
    num_tokens = outer[0] * outer[1]
    token_stride = qkv.stride(1)
    assert qkv.stride()[-3:] == (num_heads * head_dim, head_dim, 1), "queries, keys and values in a row"
    assert outer[0] == 1 or qkv.stride(0) == outer[1] * token_stride, "samples in a row"
    _heads[(num_tokens, triton.cdiv(num_heads, BLOCK_HEADS))](
        qkv,
        *scales,
        torch.view_as_real(pe),
        places,
        q,
        k,
        v,
        unrotated_q,
        token_stride,
        num_heads,
        NORM_EPS,
        head_dim,
        BLOCK_HEADS,
    )


@triton.jit
def _heads(
    qkv,
    q_scale,
    k_scale,
    rotations,
    places,
    out_q,
    out_k,
    out_v,
    out_unrotated_q,
    token_stride,
    num_heads,
    eps,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    target = token if places is None else tl.load(places + token).to(tl.int64)
    head = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[:, None]
    channel = tl.arange(0, HEAD_DIM)
    is_in = (head < num_heads) & (channel[None, :] < HEAD_DIM)
    inner = head * HEAD_DIM + channel[None, :]
    width = num_heads * HEAD_DIM
    source = qkv + token * token_stride + inner
    goal = target * width + inner
    turns = tl.load(rotations + target * HEAD_DIM + channel)  # cosine and sine in turns
    cos, sin = tl.split(tl.reshape(turns, (HEAD_DIM // 2, 2)))

    q = _rms_norm(tl.load(source, mask=is_in, other=0.0), tl.load(q_scale + channel), eps, HEAD_DIM)
    if out_unrotated_q is not None:
        tl.store(out_unrotated_q + token * width + inner, q, mask=is_in)
    tl.store(out_q + goal, _rotate(q, cos, sin, BLOCK, HEAD_DIM), mask=is_in)
    k = _rms_norm(tl.load(source + width, mask=is_in, other=0.0), tl.load(k_scale + channel), eps, HEAD_DIM)
    tl.store(out_k + goal, _rotate(k, cos, sin, BLOCK, HEAD_DIM), mask=is_in)
    if out_v is not None:
        tl.store(out_v + goal, tl.load(source + 2 * width, mask=is_in, other=0.0), mask=is_in)


@triton.jit
def _rms_norm(x, scale, eps, HEAD_DIM: tl.constexpr):
    x = x.to(tl.float32)
    return x * tl.rsqrt(tl.sum(x * x, axis=1) / HEAD_DIM + eps)[:, None] * scale.to(tl.float32)[None, :]


@triton.jit
def _rotate(x, cos, sin, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr):
    even, odd = tl.split(tl.reshape(x, (BLOCK, HEAD_DIM // 2, 2)))
    real = even * cos[None, :] - odd * sin[None, :]
    imaginary = even * sin[None, :] + odd * cos[None, :]
    return tl.reshape(tl.join(real, imaginary), (BLOCK, HEAD_DIM))


def gelu_beside(attn: Tensor, mlp: Tensor) -> Tensor:
    """See :class:`engine.model.passes.Passes`. ``mlp`` may be a slice of wider rows."""
    attn = attn.contiguous()
    attn_width, mlp_width = attn.shape[-1], mlp.shape[-1]
    assert mlp.stride(-1) == 1 and (mlp.shape[0] == 1 or mlp.stride(0) == mlp.shape[1] * mlp.stride(1)), "rows in a row"
    out = torch.empty((*attn.shape[:-1], attn_width + mlp_width), dtype=attn.dtype, device=attn.device)
    num_tokens = attn.numel() // attn_width
    _gelu_beside[(num_tokens, triton.cdiv(attn_width + mlp_width, GELU_BLOCK))](
        attn, mlp, out, mlp.stride(1), attn_width, mlp_width, GELU_BLOCK
    )
    return out


@triton.jit
def _gelu_beside(attn, mlp, out, mlp_stride, attn_width, mlp_width, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    width = attn_width + mlp_width
    is_attn = column < attn_width
    left = tl.load(attn + token * attn_width + column, mask=is_attn, other=0.0).to(tl.float32)
    is_mlp = (column >= attn_width) & (column < width)
    x = tl.load(mlp + token * mlp_stride + column - attn_width, mask=is_mlp, other=0.0).to(tl.float32)
    # tanh(u) = 2 · sigmoid(2u) − 1, so that 0.5 · x · (1 + tanh(u)) = x · sigmoid(2u)
    gelu = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    tl.store(out + token * width + column, tl.where(is_attn, left, gelu), mask=column < width)
