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


@dataclasses.dataclass(frozen=True)
class Owners:
    """Which sample each token belongs to: ``counts`` tokens of each sample, in one tensor laid out as above."""

    counts: tuple[int, ...]
    is_stacked: bool
    _maps: dict[tuple[int, torch.device], Tensor] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def per_token(self, rows: Tensor) -> Tensor:
        """One row a sample, (B, D), made to broadcast over tokens: (B, 1, D) or (1, ΣL, D)."""
        if self.is_stacked:
            return rows[:, None]
        repeats = torch.tensor(self.counts, device=rows.device)
        return rows.repeat_interleave(repeats, dim=0, output_size=sum(self.counts))[None]

    def index(self, rows: Tensor) -> Tensor:
        """For every token in order the number of its row in ``rows``, (B, D): int32 on their device."""
        key = (len(rows), rows.device)
        if key not in self._maps:
            counts = self.counts[:1] * len(rows) if self.is_stacked else self.counts
            samples = torch.arange(len(counts), dtype=torch.int32)
            self._maps[key] = samples.repeat_interleave(torch.tensor(counts)).to(rows.device)
        return self._maps[key]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
    """Token counts of a batch: ``num_txt`` for every sample, ``num_img`` one a sample.

    ``txt``, ``img`` and ``joint`` say whose the tokens of each stream and of the joint sequence are. Maps of tokens
    are made when a kernel first asks for them and live as long as this object.
    """

    num_txt: int
    num_img: tuple[int, ...]
    txt: Owners = dataclasses.field(init=False, compare=False, repr=False)
    img: Owners = dataclasses.field(init=False, compare=False, repr=False)
    joint: Owners = dataclasses.field(init=False, compare=False, repr=False)
    _places: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def is_stacked(self) -> bool:
        """Whether all samples have as many image tokens."""
        return len(set(self.num_img)) == 1

    @property
    def num_joint(self) -> tuple[int, ...]:
        """Text and image tokens together, one count a sample."""
        return tuple(self.num_txt + num for num in self.num_img)

    def __post_init__(self) -> None:
        object.__setattr__(self, "txt", Owners((self.num_txt,) * len(self.num_img), is_stacked=True))
        object.__setattr__(self, "img", Owners(self.num_img, self.is_stacked))
        object.__setattr__(self, "joint", Owners(self.num_joint, self.is_stacked))

    def places_in_joint(self, txt: Tensor) -> tuple[Tensor, Tensor]:
        """Where :meth:`join` puts every text token and every image token, counted through all samples: int32 on the
        device of ``txt``, the text stream."""
        key = (len(txt), txt.device)
        if key not in self._places:
            num_img = self.num_img[:1] * len(txt) if self.is_stacked else self.num_img
            starts = torch.tensor([0, *num_img[:-1]]).cumsum(0) + self.num_txt * torch.arange(len(num_img))
            txt_places = starts[:, None] + torch.arange(self.num_txt)
            img_places = [
                start + self.num_txt + torch.arange(num) for start, num in zip(starts.tolist(), num_img, strict=True)
            ]
            self._places[key] = (
                txt_places.flatten().int().to(txt.device),
                torch.cat(img_places).int().to(txt.device),
            )
        return self._places[key]

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
