"""Stage 1: the autoencoder, and the latents of every picture.

What the transformer has to learn is decided here: latents that change little when a picture is shrunk, and a decoder
that forgives small errors, count for more than the last decibel. So besides reconstruction the loss asks that a
shrunken latent decodes to the shrunken picture (EQ-VAE, arXiv 2502.09509), and the decoder sees noisy latents. Errors
on faces count more: what is lost there is lost to everything that follows.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from embedded.train.corpus import face_shares, load_pictures, whole_shards
from embedded.train.muon import Optimizer
from embedded.train.networks import Average
from embedded.train.step import TrainingStep, take_steps
from embedded.train.world import Clock, World
from engine.model.autoencoder import build_autoencoder
from engine.profile import ModelProfile


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderSettings:
    """How the autoencoder is trained.

    Attributes:
        batch: pictures a step and process, whole ones.
        kl_weight: of the mean KL term a latent number; 1e-3 leaves posteriors about a fifth as wide as the latents.
        noise: largest extra noise on latents, in their own standard deviations.
        shrink_share: of each batch, whose latents are also decoded shrunken.
        face_weight: of errors on the face, where those elsewhere count 1.
        refresh_s: how often shards that were drawn meanwhile are taken in; 0 is never.
        max_pictures: no more are taken in than this.
        average_decay: of the moving average, which is the result.
    """

    batch: int = 32
    learning_rate: float = 1e-3
    warm_up_steps: int = 100
    kl_weight: float = 1e-3
    noise: float = 0.15
    shrink_share: float = 0.33
    face_weight: float = 4.0
    refresh_s: float = 20.0
    max_pictures: int = 60_000
    average_decay: float = 0.998


def train_autoencoder(
    world: World,
    profile: ModelProfile,
    data: Path,
    settings: AutoencoderSettings,
    *,
    seconds: float,
    seed: int,
    initial: Any = None,
    max_steps: int | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Train for so long, from scratch or ``initial`` on.

    Returns the averaged network in float32 and what was measured.
    """
    torch.manual_seed(seed)
    network = (initial or build_autoencoder(profile.autoencoder)).to(world.device).requires_grad_(True).train()
    copied = copy.deepcopy(network).requires_grad_(False)
    average: Average[Any] = Average(network, copied, decay=settings.average_decay)
    optimizer = Optimizer(network)
    clock, generator = Clock(world, seconds, max_steps=max_steps), world.generator(seed)
    pictures = _Pictures(data, world, settings, seed=seed + 1)
    take_step = TrainingStep(
        world,
        functools.partial(_losses, network, pictures, settings, generator),
        optimizer,
        average,
        num_shown=len(_SHOWN),
        generators=(generator,),
    )

    def prepare() -> None:
        pictures.refresh(clock.elapsed_s)
        pictures.choose()

    measured = take_steps(
        world,
        clock,
        take_step,
        stage="autoencoder",
        names=_SHOWN,
        learning_rate=settings.learning_rate,
        warm_up_steps=settings.warm_up_steps,
        prepare=prepare,
    )
    measured["pictures_seen"] = len(pictures.images)
    return average.module.eval(), measured


class _Pictures:
    """The drawn pictures, more of them as they come, and those of one step.

    Attributes:
        target: (batch, 3, 256, 256) in [-1, 1], half of them mirrored.
        weight: (batch, 1, 256, 256) of errors, mean 1. A recorded step reads both where they are.
    """

    def __init__(self, data: Path, world: World, settings: AutoencoderSettings, *, seed: int) -> None:
        self._data, self._world, self._settings = data, world, settings
        self._shards = whole_shards(data)
        if not self._shards:
            raise FileNotFoundError(f"no shards in {data}; draw them with --stage data")
        self.images, self._faces = load_pictures(self._shards, world.device)
        self._looked_s = 0.0
        self._generator = world.generator(seed)
        side = self.images.shape[1]
        self.target = torch.zeros(settings.batch, 3, side, side, device=world.device)
        self.weight = torch.zeros(settings.batch, 1, side, side, device=world.device)

    def refresh(self, now_s: float) -> None:
        """Take in new shards, now and then."""
        every_s = self._settings.refresh_s
        if not every_s or now_s - self._looked_s < every_s or len(self.images) >= self._settings.max_pictures:
            return
        self._looked_s = now_s
        known = set(self._shards)
        fresh = [path for path in whole_shards(self._data) if path not in known]
        if fresh:
            self._shards += fresh
            images, faces = load_pictures(fresh, self._world.device)
            self.images, self._faces = torch.cat([self.images, images]), torch.cat([self._faces, faces])

    def choose(self) -> None:
        """Other pictures into ``target`` and ``weight``."""
        count, side, device = len(self.target), self.images.shape[1], self._world.device
        rows = torch.randint(len(self.images), (count,), generator=self._generator, device=device)
        pixels = as_pixels(self.images[rows])
        is_face = face_shares(self._faces[rows], side, side).view(count, 1, side, side)
        weight = 1 + (self._settings.face_weight - 1) * is_face
        weight = weight / weight.mean()
        is_mirrored = torch.rand((count, 1, 1, 1), generator=self._generator, device=device) < 0.5
        self.target.copy_(torch.where(is_mirrored, pixels.flip(3), pixels))
        self.weight.copy_(torch.where(is_mirrored, weight.flip(3), weight))


def as_pixels(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) in [-1, 1]."""
    return (images.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


_SHOWN = ("reconstruction", "kl", "latent_std")


def _losses(
    network: Any, pictures: _Pictures, settings: AutoencoderSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    target, weight = pictures.target, pictures.weight
    # A GPU computes in bfloat16. Autocast would run every norm in float32, at twice the traffic, and these narrow
    # layers move more than they compute.
    dtype = torch.bfloat16 if target.is_cuda else torch.float32
    named = {name: parameter.to(dtype) for name, parameter in network.named_parameters()}

    def run(part: str, x: Tensor) -> Tensor:
        own = {name.removeprefix(f"{part}."): value for name, value in named.items() if name.startswith(f"{part}.")}
        out: Tensor = functional_call(getattr(network, part), own, (x.to(dtype),))
        return out.float()

    mean, log_var = run("encoder", target).chunk(2, dim=1)
    log_var = log_var.clamp(-20, 5)
    kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).mean()
    extra = torch.rand((len(mean), 1, 1, 1), generator=generator, device=mean.device) * settings.noise * mean.std()
    deviation = torch.sqrt(log_var.exp() + extra.detach() ** 2)
    z = mean + deviation * torch.randn(mean.shape, generator=generator, device=mean.device)
    reconstruction = _distance(run("decoder", z), target, weight)
    few = max(1, round(settings.shrink_share * len(z)))
    small = run("decoder", F.avg_pool2d(z[:few], 2))
    shrunken = _distance(small, F.avg_pool2d(target[:few], 2), F.avg_pool2d(weight[:few], 2))
    loss = reconstruction + settings.kl_weight * kl + 0.5 * settings.shrink_share * shrunken
    return loss, torch.stack((reconstruction, kl, mean.std())).detach()


def _distance(drawn: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """L1 on pixels and on every band of a Laplacian pyramid: edges and strands weigh as much as areas."""
    difference = drawn - target
    total = (difference.abs() * weight).mean()
    for _ in range(3):
        coarse = F.avg_pool2d(difference, 2)
        band = difference - F.interpolate(coarse, scale_factor=2.0, mode="bilinear")
        total = total + (band.abs() * weight).mean()
        difference, weight = coarse, F.avg_pool2d(weight, 2)
    return total


@torch.no_grad()
def encoded(network: Any, images: Tensor, world: World, *, batch: int = 256) -> Tensor:
    """Posterior means of (N, 256, 256, 3) uint8 pictures, (N, z_channels, 32, 32) bfloat16, not yet normalised."""
    share = -(-len(images) // world.size)
    mine = images[world.rank * share : (world.rank + 1) * share]
    # All of it in bfloat16, not through autocast: that would run every norm in float32, at four times the traffic.
    dtype = torch.bfloat16 if world.is_cuda else torch.float32
    encoder = copy.deepcopy(network.encoder).to(dtype)
    parts = [encoder(as_pixels(pixels).to(dtype)).chunk(2, dim=1)[0].bfloat16() for pixels in mine.split(batch)]
    latents = torch.cat(parts) if parts else images.new_zeros((0,))
    if world.size == 1:
        return latents
    missing = share - len(mine)
    padded = torch.cat([latents, latents[:1].expand(missing, -1, -1, -1)]) if missing else latents
    return world.gathered(padded)[: len(images)]


def factors(latents: Tensor) -> tuple[float, float]:
    """``scale_factor`` and ``shift_factor`` that give latents mean 0 and standard deviation 1."""
    sample = latents[:: max(1, len(latents) // 4096)].float()
    return 1.0 / float(sample.std()), float(sample.mean())


@torch.no_grad()
def peak_signal_to_noise_db(network: Any, images: Tensor, world: World) -> float:
    """Mean PSNR of pictures encoded and decoded again, in dB."""
    latents = encoded(network, images, world.alone)
    errors = []
    for z, pixels in zip(latents.split(32), images.split(32), strict=True):
        with world.autocast():
            drawn = network.decoder(z.float()).float().clamp(-1, 1)
        errors.append((((drawn - as_pixels(pixels)) / 2) ** 2).mean(dim=(1, 2, 3)))
    return float((-10 * torch.log10(torch.cat(errors))).mean())
