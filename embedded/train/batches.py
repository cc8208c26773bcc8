"""Training examples: a target view with its caption, and another view of the same person as reference."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from embedded.train.captions import Tokens
from embedded.train.corpus import Corpus
from embedded.train.networks import empty_prompt, to_tokens
from embedded.train.references import reference_crops
from embedded.train.world import World
from engine.profile import ModelProfile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """B examples.

    Attributes:
        rows: (B,) places in the corpus.
        clean: (B, L, in_channels) float32, latents of the targets as tokens, mean 0 and deviation 1.
        noise: as ``clean``.
        sigma: (B,) in (0, 1).
        tokens: captions, (B, T) and (B, 77); some empty.
        crops: (B, 3, 224, 224) of another view of each person.
        is_nobody: (B,) bool: no reference is shown.
    """

    rows: Tensor
    clean: Tensor
    noise: Tensor
    sigma: Tensor
    tokens: Tokens
    crops: Tensor
    is_nobody: Tensor

    @property
    def noisy(self) -> Tensor:
        """The latents at ``sigma``."""
        sigma = self.sigma[:, None, None]
        return (1 - sigma) * self.clean + sigma * self.noise

    @property
    def velocity(self) -> Tensor:
        """What the network should say: d(latents)/dσ."""
        return self.noise - self.clean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drops:
    """Shares of examples without text alone, without reference alone, and without both."""

    text: float = 0.10
    image: float = 0.12
    both: float = 0.06


class Batches:
    """Draws batches from a corpus whose latents are known."""

    def __init__(self, corpus: Corpus, latents: Tensor, profile: ModelProfile, world: World, *, seed: int) -> None:
        """``latents``: (N, z_channels, h, w), normalised."""
        self.corpus = corpus
        self.latents = latents
        self.generator = world.generator(seed)
        self.empty = empty_prompt(profile, world.device)

    def rows(self, count: int) -> Tensor:
        """Random places in the corpus."""
        return torch.randint(len(self.corpus), (count,), generator=self.generator, device=self.generator.device)

    def crops(self, rows: Tensor) -> Tensor:
        """Reference crops of these pictures, changed as cameras change them."""
        # Pixels have their own precision; autocast can't sample grids in half of it.
        with torch.autocast(self.corpus.images.device.type, enabled=False):
            return reference_crops(self.corpus.images[rows], self.corpus.faces[rows], self.generator)

    def batch(self, count: int, drops: Drops, *, sigma: Tensor) -> Batch:
        """``count`` examples at these noise levels."""
        rows = self.rows(count)
        clean = to_tokens(self.latents[rows].float())
        chance = self.uniform(count)
        is_blank = chance < drops.text + drops.both
        is_nobody = (chance >= drops.text) & (chance < drops.text + drops.both + drops.image)
        return Batch(
            rows=rows,
            clean=clean,
            noise=torch.randn(clean.shape, generator=self.generator, device=clean.device),
            sigma=sigma,
            tokens=self.corpus.tokens.pick(rows, is_blank, self.empty, self.generator),
            crops=self.crops(self.corpus.another_view(rows, self.generator)),
            is_nobody=is_nobody,
        )

    def uniform(self, count: int) -> Tensor:
        """(count,) in [0, 1)."""
        return torch.rand(count, generator=self.generator, device=self.generator.device)

    def normal(self, count: int) -> Tensor:
        """(count,) standard normal."""
        return torch.randn(count, generator=self.generator, device=self.generator.device)


def contrast(first: Tensor, second: Tensor, identity: Tensor, *, temperature: float = 0.1) -> Tensor:
    """InfoNCE (arXiv 1807.03748), both ways: each picture finds its person's other picture among all others.

    Args:
        first, second: (B, D) embeddings of two pictures of each person.
        identity: (B,); a person who is twice in the batch is not held against himself.
    """
    a, b = F.normalize(first.float(), dim=1), F.normalize(second.float(), dim=1)
    is_same = identity[:, None] == identity[None]
    is_same.fill_diagonal_(False)
    logits = (a @ b.T / temperature).masked_fill(is_same, -torch.inf)
    goal = torch.arange(len(a), device=a.device)
    return 0.5 * (F.cross_entropy(logits, goal) + F.cross_entropy(logits.T, goal))
