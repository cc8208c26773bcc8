"""Training examples: a target view with its caption, and another view of the same person as reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from embedded.train.captions import Tokens
from embedded.train.corpus import Corpus, face_shares
from embedded.train.networks import empty_prompt, to_tokens
from embedded.train.references import reference_crops
from embedded.train.world import World
from engine.profile import ModelProfile

LOOKS = 4
"""How often each picture is looked at as a reference, each time changed anew."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """B examples.

    Attributes:
        rows: (B,) places in the corpus.
        clean: (B, L, in_channels) float32, latents of the targets as tokens, mean 0 and deviation 1.
        noise: as ``clean``.
        sigma: (B,) in (0, 1).
        is_face: (B, L) the share of each token's square that is face.
        tokens: captions, (B, T) and (B, 77); some empty.
        embeddings: (B, projection_dim) of another view of each person.
        is_nobody: (B,) bool: no reference is shown.
    """

    rows: Tensor
    clean: Tensor
    noise: Tensor
    sigma: Tensor
    is_face: Tensor
    tokens: Tokens
    embeddings: Tensor
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

    def losses(self, predicted: Tensor, goal: Tensor, *, face_weight: float) -> tuple[Tensor, Tensor]:
        """Mean squared error with faces counted more, and (2,) to show: of whole pictures, of faces alone.

        A face is a small part of a picture, and nearly all that anybody looks at.
        """
        error = (predicted.float() - goal).square().mean(2)
        on_face = (error * self.is_face).sum()
        share = self.is_face.sum() / error.numel()
        more = face_weight - 1
        loss = (error.mean() + more * on_face / error.numel()) / (1 + more * share)
        return loss, torch.stack((error.mean(), on_face / self.is_face.sum())).detach()


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
        self._world = world
        self._is_face = face_shares(corpus.faces, latents.shape[-1] // 2, corpus.images.shape[1])
        self._embeddings: Tensor | None = None

    def rows(self, count: int, *, among: int | None = None) -> Tensor:
        """Random places in the corpus, of all pictures or the first so many."""
        num_pictures = len(self.corpus) if among is None else among
        return torch.randint(num_pictures, (count,), generator=self.generator, device=self.generator.device)

    def crops(self, rows: Tensor) -> Tensor:
        """Reference crops of these pictures, changed as cameras change them."""
        # Pixels have their own precision; autocast can't sample grids in half of it.
        with torch.autocast(self.corpus.images.device.type, enabled=False):
            return reference_crops(self.corpus.images[rows], self.corpus.faces[rows], self.generator)

    @torch.no_grad()
    def look(self, look: Callable[[Tensor], Tensor], *, batch: int = 512) -> None:
        """See every picture as a reference :data:`LOOKS` times, and keep what was seen.

        Args:
            look: crops (B, 3, 224, 224) to embeddings (B, projection_dim); it must not learn any more.
        """
        world, count = self._world, len(self.corpus)
        share = -(-count // world.size)
        batch = min(batch, share)
        rows = (torch.arange(share, device=self.generator.device) + world.rank * share).clamp(max=count - 1)
        seen = []
        for _ in range(LOOKS):
            parts = []
            for start in range(0, share, batch):
                first = min(start, share - batch)  # the last batch is as large as all: compilers know its shape
                with world.autocast():
                    parts.append(look(self.crops(rows[first : first + batch]))[start - first :])
            seen.append(torch.cat(parts))
        self._embeddings = world.gathered(torch.stack(seen, dim=1))[:count]

    def batch(self, count: int, drops: Drops, *, sigma: Tensor) -> Batch:
        """``count`` examples at these noise levels. References are what :meth:`look` saw."""
        if self._embeddings is None:
            raise RuntimeError("no reference was looked at: call look() first")
        rows = self.rows(count)
        clean = to_tokens(self.latents[rows].float())
        look = torch.randint(LOOKS, (count,), generator=self.generator, device=self.generator.device)
        chance = self.uniform(count)
        is_blank = chance < drops.text + drops.both
        is_nobody = (chance >= drops.text) & (chance < drops.text + drops.both + drops.image)
        return Batch(
            rows=rows,
            clean=clean,
            noise=torch.randn(clean.shape, generator=self.generator, device=clean.device),
            sigma=sigma,
            is_face=self._is_face[rows],
            tokens=self.corpus.tokens.pick(rows, is_blank, self.empty, self.generator),
            embeddings=self._embeddings[self.corpus.another_view(rows, self.generator), look].float(),
            is_nobody=is_nobody,
        )

    def uniform(self, count: int) -> Tensor:
        """(count,) in [0, 1)."""
        return torch.rand(count, generator=self.generator, device=self.generator.device)

    def normal(self, count: int) -> Tensor:
        """(count,) standard normal."""
        return torch.randn(count, generator=self.generator, device=self.generator.device)


def shape_scores(shapes: Tensor, *, count: int = 48) -> Tensor:
    """(P, 3 · points) face shapes → (P, count): their principal components, mean square 1 over all.

    The root of each component's deviation is divided out: as they are, the size of the head would be all; evened out
    wholly, what nobody sees would count like the nose.
    """
    centred = (shapes - shapes.mean(0)).cpu().double()  # on the host, so that all processes find the same signs
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))  # the largest last
    scores: Tensor = centred @ axes[:, -count:] / variances[-count:].clamp(min=1e-12) ** 0.25
    return (scores / float(scores.square().mean().sqrt())).float().to(shapes.device)


def trait_scores(shapes: Tensor, traits: Tensor) -> Tensor:
    """(P, 48 + K): what there is to say of each face. The shape, by :func:`shape_scores`, and all other traits, each
    with mean 0 and mean square 1 over all people (0 where all are alike).

    Args:
        shapes: (P, 3 · points).
        traits: (P, K).
    """
    centred = traits - traits.mean(0)
    spreads = centred.square().mean(0).sqrt().clamp(min=1e-3)
    return torch.cat((shape_scores(shapes), centred / spreads), dim=1)


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


def who_and_which_traits(
    embeddings: Tensor, said: Tensor, people: Tensor, scores: Tensor, *, trait_weight: float
) -> tuple[Tensor, Tensor]:
    """The loss of a network that learns to know faces, and (2,) to show: :func:`contrast`, and the error in the traits.

    Args:
        embeddings: (2B, D), first one view of each person, then another of each.
        said: (2B, count), the traits as the network says they are.
        people: (B,) identities.
        scores: (P, count), the traits of all people, from :func:`trait_scores`.
    """
    first, second = embeddings.chunk(2)
    contrasted = contrast(first, second, people)
    missed = F.mse_loss(said.float(), scores[people].repeat(2, 1))
    return contrasted + trait_weight * missed, torch.stack((contrasted, missed)).detach()
