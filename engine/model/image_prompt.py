"""A reference picture as the transformer takes it: keys and values for every double block, one row a sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BlockPrompt:
    """What one block needs: ``keys`` and ``values`` (B, N, H, head_dim), ``scale`` (B,)."""

    keys: Tensor
    values: Tensor
    scale: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImagePrompt:
    """Image prompts of B samples.

    Attributes:
        keys, values: (B, depth, N, H, head_dim).
        scale: (B,), weight of the adapter's attention; 0 is as if there were no adapter.
    """

    keys: Tensor
    values: Tensor
    scale: Tensor

    def block(self, index: int) -> BlockPrompt:
        """The share of double block ``index``."""
        return BlockPrompt(keys=self.keys[:, index], values=self.values[:, index], scale=self.scale)

    def scaled(self, scale: float) -> ImagePrompt:
        """The same pictures with another weight."""
        return dataclasses.replace(self, scale=torch.full_like(self.scale, scale))

    @property
    def size_bytes(self) -> int:
        """Memory held by keys and values."""
        return self.keys.nbytes + self.values.nbytes

    @staticmethod
    def stack(rows: Sequence[ImagePrompt]) -> ImagePrompt:
        """One batch out of several samples' prompts, in order."""
        return ImagePrompt(
            keys=torch.cat([row.keys for row in rows]),
            values=torch.cat([row.values for row in rows]),
            scale=torch.cat([row.scale for row in rows]),
        )
