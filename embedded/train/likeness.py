"""What the flow's loss hardly sees: whose face it is.

A nose that is a little too wide moves an edge by half a latent pixel; among hair, light and background that is next to
nothing in a squared error, and nearly all of what makes a likeness. So a small network, the reader, first learns from
latents who is in them and what traits the face has. Then the flow is asked that the picture it is heading for be read
as its target is (as identity losses on predicted pictures, arXiv 2312.06354 and 2404.16022). The reader is shown noisy
latents, in training and afterwards: a network that reads through noise can't be pleased by patterns nobody sees.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedded.train.batches import Batch, Batches, trait_scores, who_and_which_traits
from embedded.train.muon import Optimizer
from embedded.train.networks import to_latents
from embedded.train.step import TrainingStep, take_steps
from embedded.train.world import Clock, World

SIDE = 24
"""Faces are read as so many latent pixels a side."""

MARGIN = 0.1
"""Around the face box, as a share of its side."""

MAX_NOISE = 0.6
"""Deviation of the strongest noise on what is read; latents have deviation 1."""

_NAMES = ("reader_contrast", "reader_traits")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LikenessSettings:
    """How likeness is learned.

    Attributes:
        weight: of the likeness in the gradient, as a share of the flow's (root mean squares over a batch); 0 is none.
        reader_seconds: for the reader, before.
        reader_batch: people in a step of the reader, two views of each.
        reader_rate: the reader's learning rate.
        trait_weight: of the error in the faces' traits, beside the contrastive loss.
    """

    weight: float = 0.5
    reader_seconds: float = 40.0
    reader_batch: int = 512
    reader_rate: float = 1e-3
    trait_weight: float = 3.0


class FaceReader(nn.Module):
    """Latents of faces to what they say of the person.

    Three stages of residual convolutions, 24, 12 and 6 pixels a side; 6 million parameters, none of them shipped.
    """

    def __init__(self, num_channels: int, num_scores: int, *, width: int = 64, dim: int = 256) -> None:
        """``num_scores``: numbers that say the face's traits, see :func:`embedded.train.batches.trait_scores`."""
        super().__init__()
        self.start = nn.Conv2d(num_channels, width, 3, padding=1)
        widths = (width, 2 * width, 4 * width)
        self.stages = nn.ModuleList(nn.Sequential(_Residual(each), _Residual(each)) for each in widths)
        self.downs = nn.ModuleList(
            nn.Conv2d(wide, wider, 3, stride=2, padding=1) for wide, wider in itertools.pairwise(widths)
        )
        self.person = nn.Linear(widths[-1] * (SIDE // 4) ** 2, dim)
        self.traits = nn.Linear(dim, num_scores)

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """``faces`` (B, channels, 24, 24) to who it is (B, dim), its traits (B, num_scores), each stage's features."""
        x = self.start(faces)
        features = []
        for index, stage in enumerate(self.stages):
            x = stage(self.downs[index - 1](x) if index else x)
            features.append(x)
        person = self.person(F.silu(x).flatten(1))
        return person, self.traits(F.silu(person)), features


class _Residual(nn.Module):
    """x + conv(conv(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(F.silu(norm(h)))
        return x + h


class Likeness:
    """How far predicted pictures are from being read as their targets are."""

    def __init__(self, world: World, batches: Batches, settings: LikenessSettings) -> None:
        corpus = batches.corpus
        self.settings = settings
        self._world, self._batches = world, batches
        self._scores = trait_scores(corpus.shapes, corpus.traits)
        # From pixels to shares of the picture.
        self._faces = corpus.faces / corpus.images.shape[1]
        self.reader = FaceReader(batches.latents.shape[1], self._scores.shape[1]).to(world.device)
        self.measured: dict[str, Any] | None = None
        """While the reader was trained; None before."""

    def learn(self, *, max_steps: int | None = None) -> None:
        """Train the reader, which stands still from then on."""
        settings, batches = self.settings, self._batches
        optimizer = Optimizer(self.reader, weight_decay=0.01)

        def losses() -> tuple[Tensor, Tensor]:
            rows = batches.rows(settings.reader_batch)
            views = torch.cat((rows, batches.corpus.another_view(rows, batches.generator)))
            noise = self._noise(len(views))
            faces = self._jittered(self._faces[views])
            with self._world.autocast():
                person, said, _ = self.reader(cut_out(batches.latents[views].float(), faces) + noise)
            people = rows // batches.corpus.num_views
            return who_and_which_traits(person, said, people, self._scores, trait_weight=settings.trait_weight)

        self.measured = take_steps(
            self._world,
            Clock(self._world, settings.reader_seconds, max_steps=max_steps),
            TrainingStep(self._world, losses, optimizer, None, num_shown=2, generators=(batches.generator,)),
            stage="reader",
            names=_NAMES,
            learning_rate=settings.reader_rate,
            warm_up_steps=100,
        )
        self.reader.requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        """The reader, and what was measured."""
        return {"reader": self.reader.state_dict(), "measured": self.measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.reader.load_state_dict(state["reader"])
        self.reader.requires_grad_(False)
        self.measured = state["measured"]

    def loss(self, predicted: Tensor, batch: Batch) -> Tensor:
        """A number that is 0 where the pictures that ``predicted`` heads for are read as their targets.

        Args:
            predicted: velocities (B, L, in_channels), float32.
        """
        heading_for = to_latents(batch.noisy - batch.sigma[:, None, None] * predicted)
        faces, noise = self._faces[batch.rows], self._noise(len(batch.rows))
        with torch.no_grad(), self._world.autocast():
            true_person, true_traits, true_features = self.reader(cut_out(to_latents(batch.clean), faces) + noise)
        with self._world.autocast():
            person, traits, features = self.reader(cut_out(heading_for, faces) + noise)
        missed = 1 - F.cosine_similarity(person.float(), true_person.float(), dim=1)
        missed = missed + (traits.float() - true_traits.float()).square().mean(1)
        for seen, true in zip(features, true_features, strict=True):  # as LPIPS (arXiv 1801.03924), unweighted
            ahead = F.normalize(seen.float(), dim=1) - F.normalize(true.float(), dim=1)
            missed = missed + ahead.square().sum(1).mean((1, 2))
        # Through much noise nobody can head for details, and without a person any face will do.
        weight = (1 - batch.sigma) * (~batch.is_nobody).float()
        loss: Tensor = (weight * missed).mean()
        return loss

    def gradient_on(self, predicted: Tensor, flow: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The likeness loss's gradient, scaled to its share of the flow's.

        Args:
            predicted: (B, L, in_channels) float32, a leaf that ``flow`` was computed from.

        Returns:
            The sum of both gradients, as ``predicted``, and the likeness loss.
        """
        loss = self.loss(predicted, batch)
        (of_flow,) = torch.autograd.grad(flow, predicted)
        (of_loss,) = torch.autograd.grad(loss, predicted)
        share = of_flow.square().mean().sqrt() / of_loss.square().mean().sqrt().clamp(min=1e-12)
        return of_flow + self.settings.weight * share * of_loss, loss.detach()

    def _noise(self, count: int) -> Tensor:
        """Noise of a random strength on each of ``count`` faces."""
        generator, device = self._batches.generator, self._world.device
        channels = self._batches.latents.shape[1]
        noise = torch.randn((count, channels, SIDE, SIDE), generator=generator, device=device)
        return noise * MAX_NOISE * self._batches.uniform(count)[:, None, None, None]

    def _jittered(self, faces: Tensor) -> Tensor:
        """Boxes a little beside and larger or smaller."""
        side = faces[:, 2] * torch.exp(0.05 * self._batches.normal(len(faces)))
        ahead = [0.03 * faces[:, 2] * self._batches.normal(len(faces)) for _ in range(2)]
        return torch.stack((faces[:, 0] + ahead[0], faces[:, 1] + ahead[1], side), dim=1)


def cut_out(latents: Tensor, faces: Tensor) -> Tensor:
    """(B, C, h, w) and (B, 3) centre x, y and side as shares of the picture → (B, C, 24, 24) around each face."""
    theta = torch.zeros(len(latents), 2, 3, device=latents.device)
    theta[:, 0, 0] = theta[:, 1, 1] = faces[:, 2] * (1 + 2 * MARGIN)
    theta[:, :, 2] = 2 * faces[:, :2] - 1
    grid = F.affine_grid(theta, [len(latents), latents.shape[1], SIDE, SIDE], align_corners=False)
    return F.grid_sample(latents, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
