"""Stage 2: everything learns together, by rectified flow (arXiv 2209.03003) in the engine's own forward pass.

First the vision tower alone learns to tell people apart (a contrastive loss over two views of each; half a minute),
because the flow's loss alone would teach it that only slowly. Then flow matching trains all networks at once, with
that loss going on beside it at a small weight.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from embedded.train.batches import Batch, Batches, Drops, contrast
from embedded.train.muon import Optimizer
from embedded.train.networks import MUON_PREFIXES, UNDISTILLED, Average, Conditions, Learner
from embedded.train.step import TrainingStep
from embedded.train.world import SHOW_EVERY_STEPS, Clock, World, warm_up_and_cosine
from engine.profile import ModelProfile


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowSettings:
    """How the networks are trained.

    Attributes:
        batch: examples a step and process.
        contrast_rows: of them, those whose target is looked at too, for the contrastive loss.
        looking_share: of the stage's time, for the vision tower alone.
        sigma_mean, sigma_spread: noise levels are sigmoid(normal): 0.7 is a median of 0.67, where the sampler's fixed
            shift of 1.15 puts its steps (arXiv 2403.03206, section 3.1); a tenth are uniform.
        average_decay: of the moving average, which is the result.
        save_every_s: between checkpoints.
    """

    batch: int = 512
    contrast_rows: int = 128
    looking_share: float = 0.09
    learning_rate: float = 3e-3
    looking_rate: float = 2e-3
    warm_up_steps: int = 150
    weight_decay: float = 0.01
    sigma_mean: float = 0.7
    sigma_spread: float = 1.0
    contrast_weight: float = 0.05
    drops: Drops = dataclasses.field(default_factory=Drops)
    average_decay: float = 0.998
    save_every_s: float = 150.0


def train_flow(
    world: World,
    profile: ModelProfile,
    batches: Batches,
    settings: FlowSettings,
    *,
    seconds: float,
    seed: int,
    checkpoint: Path,
    initial: Learner | None = None,
    max_steps: int | None = None,
    pause_s: float | None = None,
) -> tuple[Learner, dict[str, Any]]:
    """Train for so long in all, from ``checkpoint`` on where there is one.

    Args:
        pause_s: stop after so long in this process, wherever the stage is; the next run goes on from there.
        initial: networks to begin with, where there is no checkpoint; their vision tower is not trained alone again.

    Returns:
        The averaged networks, frozen, and what was measured.
    """
    torch.manual_seed(seed)
    learner = (initial or Learner(profile)).to(world.device).requires_grad_(True).train()
    average = Average(learner, decay=settings.average_decay)
    optimizer = Optimizer(learner, muon_prefixes=MUON_PREFIXES, weight_decay=settings.weight_decay)
    step, done_s = 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=world.device, weights_only=True)
        learner.load_state_dict(state["learner"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, done_s = state["step"], state["done_s"]
        world.say(f"goes on from step {step}, {done_s:.0f} s")
    learner.compile_blocks(world)
    clock = Clock(world, seconds, max_steps=max_steps, done_s=done_s, pause_s=pause_s)
    measured: dict[str, Any] = {}
    if step == 0 and initial is None:
        measured["looking"] = _learn_to_look(world, learner, batches, settings, seconds=seconds, max_steps=max_steps)
        optimizer = Optimizer(learner, muon_prefixes=MUON_PREFIXES, weight_decay=settings.weight_decay)
        average = Average(learner, decay=settings.average_decay)
    take_step = TrainingStep(
        world,
        functools.partial(_losses, world, learner, batches, settings),
        optimizer,
        average,
        num_shown=2,
        generators=(batches.generator,),
    )
    saved_s = clock.elapsed_s
    began_s, began_step = clock.elapsed_s, step
    while (progress := clock.progress(step)) < 1.0 and not clock.is_paused:
        factor = warm_up_and_cosine(step, progress, warm_up_steps=settings.warm_up_steps)
        take_step(settings.learning_rate * factor)
        step += 1
        if step % SHOW_EVERY_STEPS == 0:
            flow, contrasted = take_step.shown()
            if flow != flow:
                raise FloatingPointError(f"the flow loss is not a number at step {step}; lower the learning rate")
            rate = (step - began_step) * settings.batch * world.size / (clock.elapsed_s - began_s)
            world.say(
                f"flow step {step}, {progress:.0%}, {clock.elapsed_s:.0f} s, {rate:.0f} examples a second: "
                f"flow {flow:.4f}, contrast {contrasted:.3f}"
            )
            measured |= {"flow_loss": round(flow, 5), "contrast_loss": round(contrasted, 4)}
        if world.is_first and clock.elapsed_s - saved_s > settings.save_every_s:
            saved_s = clock.elapsed_s
            _save(checkpoint, learner, average, optimizer, step, clock.elapsed_s)
    if world.is_first:
        _save(checkpoint, learner, average, optimizer, step, clock.elapsed_s)
    world.barrier()
    measured |= {
        "steps": step,
        "seconds": round(clock.elapsed_s, 1),
        "examples": step * settings.batch * world.size,
        "processes": world.size,
        "is_whole": progress >= 1.0,
    }
    return average.module.eval(), measured


def _losses(world: World, learner: Learner, batches: Batches, settings: FlowSettings) -> tuple[Tensor, Tensor]:
    """The loss, and its two parts (2,)."""
    batch = batches.batch(settings.batch, settings.drops, sigma=training_sigmas(batches, settings))
    looked_at = batch.rows[: settings.contrast_rows]
    crops = torch.cat([batch.crops, batches.crops(looked_at)])
    with world.autocast():
        embeddings, others = learner.look(crops).split([len(batch.rows), len(looked_at)])
        given = conditions(learner, batch, embeddings, batches)
        predicted = learner.velocity(batch.noisy, batch.sigma, given)
    identity = looked_at // batches.corpus.num_views
    contrasted = contrast(embeddings[: len(looked_at)], others, identity)
    flow = F.mse_loss(predicted.float(), batch.velocity)
    return flow + settings.contrast_weight * contrasted, torch.stack((flow, contrasted))


def conditions(learner: Learner, batch: Batch, embeddings: Tensor, batches: Batches) -> Conditions:
    """A batch's conditions before distillation. Nobody is a black picture at any strength, or any picture at none."""
    txt, vec = learner.read(batch.tokens)
    count = len(batch.rows)
    is_black = batch.is_nobody & (batches.uniform(count) < 0.5)
    black = learner.look_at_black().to(embeddings.dtype)
    scale = torch.where(batch.is_nobody, torch.where(is_black, batches.uniform(count), 0.0), 1.0)
    return Conditions(
        txt=txt,
        vec=vec,
        embeddings=torch.where(is_black[:, None], black, embeddings),
        scale=scale,
        guidance=torch.full_like(scale, UNDISTILLED),
    )


def training_sigmas(batches: Batches, settings: FlowSettings) -> Tensor:
    """(batch,) noise levels."""
    sigma = torch.sigmoid(settings.sigma_mean + settings.sigma_spread * batches.normal(settings.batch))
    is_uniform = batches.uniform(settings.batch) < 0.1
    return torch.where(is_uniform, batches.uniform(settings.batch), sigma).clamp(1e-3, 1 - 1e-4)


def _learn_to_look(
    world: World,
    learner: Learner,
    batches: Batches,
    settings: FlowSettings,
    *,
    seconds: float,
    max_steps: int | None,
) -> dict[str, Any]:
    """The vision tower alone: two views of each person are nearer to each other than to anyone else's."""
    optimizer = Optimizer(learner, muon_prefixes=MUON_PREFIXES, weight_decay=settings.weight_decay, only="vision.")
    count = (settings.batch + settings.contrast_rows) // 2  # so that the tower sees batches of one size only
    clock = Clock(world, seconds * settings.looking_share, max_steps=max_steps)

    def losses() -> tuple[Tensor, Tensor]:
        rows = batches.rows(count)
        crops = torch.cat([batches.crops(rows), batches.crops(batches.corpus.another_view(rows, batches.generator))])
        with world.autocast():
            first, second = learner.look(crops).chunk(2)
        loss = contrast(first, second, rows // batches.corpus.num_views)
        return loss, loss[None]

    take_step = TrainingStep(world, losses, optimizer, None, num_shown=1, generators=(batches.generator,))
    step, shown = 0, float("nan")
    while (progress := clock.progress(step)) < 1.0:
        take_step(settings.looking_rate * warm_up_and_cosine(step, progress, warm_up_steps=100, floor=0.3))
        step += 1
        if step % SHOW_EVERY_STEPS == 0:
            (shown,) = take_step.shown()
            world.say(f"looking step {step}, {progress:.0%}, {clock.elapsed_s:.0f} s: contrast {shown:.3f}")
    return {"steps": step, "seconds": round(clock.elapsed_s, 1), "contrast_loss": round(shown, 4)}


def _save(path: Path, learner: Learner, average: Average, optimizer: Optimizer, step: int, done_s: float) -> None:
    partial = path.with_suffix(".partial")
    state = {
        "learner": learner.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "done_s": done_s,
    }
    torch.save(state, partial)
    partial.replace(path)
