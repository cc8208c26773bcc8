"""Stage 1: the autoencoder, and the latents of every picture.

What the transformer has to learn is decided here: latents that change little when a picture is shrunk, and a decoder
that forgives small errors, count for more than the last decibel. So besides reconstruction the loss asks that a
shrunken latent decodes to the shrunken picture (EQ-VAE, arXiv 2502.09509), and the decoder sees noisy latents.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from embedded.train.corpus import load_pictures, whole_shards
from embedded.train.world import Clock, World, warm_up_and_cosine
from engine.model.autoencoder import build_autoencoder
from engine.profile import ModelProfile


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderSettings:
    """How the autoencoder is trained.

    Attributes:
        batch: pictures a step and process; whole ones, so that the compiler sees one size.
        kl_weight: of the mean KL term a latent number; 1e-3 leaves posteriors about a fifth as wide as the latents.
        noise: largest extra noise on latents, in their own standard deviations.
        shrink_share: steps that also decode a shrunken latent.
        refresh_s: how often shards that were drawn meanwhile are taken in; 0 is never.
        max_pictures: no more are taken in than this.
        average_decay: of the moving average, which is the result.
    """

    batch: int = 32
    learning_rate: float = 5e-4
    warm_up_steps: int = 100
    kl_weight: float = 1e-3
    noise: float = 0.15
    shrink_share: float = 0.33
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
    max_steps: int | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Train from scratch for so long. Returns the averaged network in float32 and what was measured."""
    torch.manual_seed(seed)
    network = build_autoencoder(profile.autoencoder).to(world.device, memory_format=torch.channels_last).train()
    averaged = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(settings.average_decay)
    )
    # The GPU computes in a bfloat16 copy. Autocast would run every norm in float32, at twice the traffic, and these
    # narrow layers move more than they compute.
    fast = copy.deepcopy(network).bfloat16() if world.is_cuda else network
    parameters, fast_parameters = list(network.parameters()), list(fast.parameters())
    adam = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.99), weight_decay=0.0, fused=world.is_cuda)
    # Not compiled: the compiler took longer than the stage for diffusers' encoder and decoder (docs/log.md).
    clock, generator = Clock(world, seconds, max_steps=max_steps), world.generator(seed)
    pictures = _Pictures(data, world, settings)
    losses: dict[str, Tensor] = {}
    step = 0
    while (progress := clock.progress(step)) < 1.0:
        pictures.refresh(clock.elapsed_s)
        target = pictures.batch(settings.batch, generator)
        loss, losses = _loss(fast, target, settings, generator)
        loss.backward()
        if fast is not network:
            _hand_over_gradients(fast_parameters, parameters)
        world.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        factor = warm_up_and_cosine(step, progress, warm_up_steps=settings.warm_up_steps)
        adam.param_groups[0]["lr"] = settings.learning_rate * factor
        adam.step()
        adam.zero_grad(set_to_none=True)
        if fast is not network:
            with torch.no_grad():
                torch._foreach_copy_(fast_parameters, parameters)
        averaged.update_parameters(network)
        step += 1
        if step % 200 == 0:
            shown = ", ".join(f"{name} {float(value):.4f}" for name, value in losses.items())
            world.say(f"autoencoder step {step}, {progress:.0%}, {clock.elapsed_s:.0f} s: {shown}")
    trained: Any = averaged.module.eval().requires_grad_(False)
    measured = {
        "steps": step,
        "seconds": round(clock.elapsed_s, 1),
        "pictures_seen": len(pictures.images),
        **{name: round(float(value), 5) for name, value in losses.items()},
    }
    return trained, measured


class _Pictures:
    """The drawn pictures, more of them as they come."""

    def __init__(self, data: Path, world: World, settings: AutoencoderSettings) -> None:
        self._data, self._world, self._settings = data, world, settings
        self._shards = whole_shards(data)
        if not self._shards:
            raise FileNotFoundError(f"no shards in {data}; draw them with --stage data")
        self.images = load_pictures(self._shards, world.device)
        self._looked_s = 0.0

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
            self.images = torch.cat([self.images, load_pictures(fresh, self._world.device)])

    def batch(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, 3, 256, 256) in [-1, 1], half of the batches mirrored."""
        rows = torch.randint(len(self.images), (count,), generator=generator, device=self._world.device)
        pixels = self.images[rows]
        if torch.rand(()) < 0.5:
            pixels = pixels.flip(2)
        return as_pixels(pixels)


def as_pixels(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) in [-1, 1]."""
    return (images.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _hand_over_gradients(source: list[Tensor], target: list[Tensor]) -> None:
    """Gradients of the bfloat16 copy to the float32 parameters."""
    for low, high in zip(source, target, strict=True):
        assert low.grad is not None, "every parameter of the autoencoder takes part"
        high.grad, low.grad = low.grad.float(), None


def _loss(
    network: Any, target: Tensor, settings: AutoencoderSettings, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    dtype = next(network.parameters()).dtype
    mean, log_var = network.encoder(target.to(dtype)).chunk(2, dim=1)
    mean, log_var = mean.float(), log_var.float().clamp(-20, 5)
    kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).mean()
    spread = (0.5 * log_var).exp()
    extra = torch.rand((len(mean), 1, 1, 1), generator=generator, device=mean.device) * settings.noise * mean.std()
    z = mean + torch.sqrt(spread**2 + extra.detach() ** 2) * torch.randn(
        mean.shape, generator=generator, device=mean.device
    )
    drawn = network.decoder(z.to(dtype))
    reconstruction = _distance(drawn.float(), target)
    loss = reconstruction + settings.kl_weight * kl
    if torch.rand(()) < settings.shrink_share:
        small = network.decoder(F.avg_pool2d(z, 2).to(dtype))
        loss = loss + 0.5 * _distance(small.float(), F.avg_pool2d(target, 2))
    return loss, {"reconstruction": reconstruction.detach(), "kl": kl.detach(), "latent_std": mean.detach().std()}


def _distance(drawn: Tensor, target: Tensor) -> Tensor:
    """L1 on pixels and on every band of a Laplacian pyramid: edges and strands weigh as much as areas."""
    difference = drawn - target
    total = difference.abs().mean()
    for _ in range(3):
        coarse = F.avg_pool2d(difference, 2)
        total = total + (difference - F.interpolate(coarse, scale_factor=2.0, mode="bilinear")).abs().mean()
        difference = coarse
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
