"""How the tokens of several samples lie in one tensor, so that one forward pass serves them all.

Text tokens are always stacked: (B, T, D), every sample has as many. Image tokens are

* **stacked** where all samples have as many: (B, L, D);
* **packed** where sizes differ: (1, ΣL, D), sample after sample, no padding. Linear layers, norms and MLPs do not
  notice; attention runs sample by sample.

The joint sequence (text before image, per sample) follows the same rule: (B, T+L, D) or (1, Σ(T+L), D).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.runtime.attention import scaled_dot_product_attention


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """Token counts of a batch: ``num_txt`` for every sample, ``num_img`` one a sample."""

    num_txt: int
    num_img: tuple[int, ...]

    @property
    def is_stacked(self) -> bool:
        """Whether all samples have as many image tokens."""
        return len(set(self.num_img)) == 1

    @property
    def num_joint(self) -> tuple[int, ...]:
        """Text and image tokens together, one count a sample."""
        return tuple(self.num_txt + num for num in self.num_img)

    def pack(self, samples: Sequence[Tensor]) -> Tensor:
        """Image tokens of each sample, (L_i, …), into one tensor."""
        return torch.stack(tuple(samples)) if self.is_stacked else torch.cat(tuple(samples))[None]

    def unpack(self, img: Tensor) -> tuple[Tensor, ...]:
        """The inverse of :meth:`pack`."""
        return img.unbind(0) if self.is_stacked else img[0].split(self.num_img)

    def join(self, txt: Tensor, img: Tensor) -> Tensor:
        """Text (B, T, …) before image tokens, sample by sample."""
        if self.is_stacked:
            return torch.cat((txt, img), dim=1)
        pieces = [piece for pair in zip(txt, img[0].split(self.num_img), strict=True) for piece in pair]
        return torch.cat(pieces)[None]

    def split(self, joint: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of :meth:`join`."""
        if self.is_stacked:
            return joint[:, : self.num_txt], joint[:, self.num_txt :]
        samples = joint[0].split(self.num_joint)
        txt = torch.stack([sample[: self.num_txt] for sample in samples])
        return txt, torch.cat([sample[self.num_txt :] for sample in samples])[None]

    def per_img_token(self, rows: Tensor) -> Tensor:
        """One row a sample, (B, D), made to broadcast over image tokens."""
        return self._per_token(rows, self.num_img)

    def per_joint_token(self, rows: Tensor) -> Tensor:
        """One row a sample, (B, D), made to broadcast over the joint sequence."""
        return self._per_token(rows, self.num_joint)

    def self_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Joint attention; tokens see their own sample only. All (…, S, H, head_dim) as :meth:`join` lays them out."""
        if self.is_stacked:
            return scaled_dot_product_attention(q, k, v)
        parts = (x[0].split(self.num_joint) for x in (q, k, v))
        outs = [scaled_dot_product_attention(*(x[None] for x in qkv)) for qkv in zip(*parts, strict=True)]
        return torch.cat(outs, dim=1)

    def cross_attention(self, img_q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Image tokens attend to their own sample's keys and values, (B, N, H, head_dim)."""
        if self.is_stacked:
            return scaled_dot_product_attention(img_q, k, v)
        outs = [
            scaled_dot_product_attention(q[None], k[i : i + 1], v[i : i + 1])
            for i, q in enumerate(img_q[0].split(self.num_img))
        ]
        return torch.cat(outs, dim=1)

    def _per_token(self, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        if self.is_stacked:
            return rows[:, None]
        repeats = torch.tensor(counts, device=rows.device)
        return rows.repeat_interleave(repeats, dim=0, output_size=sum(counts))[None]
