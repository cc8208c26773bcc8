"""Stage 2: everything learns together, by rectified flow (arXiv 2209.03003) in the engine's own forward pass.

First the vision tower alone learns to tell people apart (a contrastive loss over two views of each; a minute), because
the flow's loss alone would teach it that only slowly, and to say what traits each face has, its shape first of all:
people differ so much in skin, hair and age that telling them apart alone teaches hardly anything about noses. Then it
stays as it is, looks at every picture a few times, and all other networks learn at once: flow matching, and whose face
it is (:mod:`embedded.train.likeness`).
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embedded.train.batches import Batch, Batches, Drops, trait_scores, who_and_which_traits
from embedded.train.likeness import Likeness, LikenessSettings
from embedded.train.muon import Optimizer
from embedded.train.networks import MUON_PREFIXES, UNDISTILLED, Average, Conditions, Learner
from embedded.train.references import reference_crops
from embedded.train.step import TrainingStep, take_steps
from embedded.train.world import SHOW_EVERY_STEPS, Clock, World, warm_up_and_cosine
from engine.profile import ModelProfile

NUM_TRIED = 512
"""Pictures on which the vision tower is tried."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowSettings:
    """How the networks are trained.

    Attributes:
        batch: examples a step and process.
        looking_batch: people in a step of the vision tower, two views of each.
        looking_share: of the stage's time, for the vision tower alone.
        trait_weight: of the error in the faces' traits, beside the contrastive loss.
        sigma_mean, sigma_spread: noise levels are sigmoid(normal): 0.7 is a median of 0.67, where the sampler's fixed
            shift of 1.15 puts its steps (arXiv 2403.03206, section 3.1); a tenth are uniform.
        face_weight: of errors on the face, where those elsewhere count 1.
        likeness: how much it counts whose face it is.
        average_decay: of the moving average, which is the result.
        save_every_s: between checkpoints.
    """

    batch: int = 512
    looking_batch: int = 320
    looking_share: float = 0.16
    trait_weight: float = 3.0
    learning_rate: float = 2e-3
    looking_rate: float = 2e-3
    warm_up_steps: int = 150
    weight_decay: float = 0.01
    sigma_mean: float = 0.7
    sigma_spread: float = 1.0
    face_weight: float = 5.0
    drops: Drops = dataclasses.field(default_factory=Drops)
    likeness: LikenessSettings = dataclasses.field(default_factory=LikenessSettings)
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
        initial: networks to begin with, where there is no checkpoint.

    Returns:
        The averaged networks, frozen, and what was measured.
    """
    torch.manual_seed(seed)
    learner = (initial or Learner(profile)).to(world.device).requires_grad_(True).train()
    average = Average(learner, learner.copied(), decay=settings.average_decay)
    learner.vision.requires_grad_(False)
    optimizer = Optimizer(learner, muon_prefixes=MUON_PREFIXES, weight_decay=settings.weight_decay)
    step, examples, done_s = 0, 0, 0.0
    looking: dict[str, Any] | None = None
    likeness = Likeness(world, batches, settings.likeness) if settings.likeness.weight else None
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=world.device, weights_only=True)
        learner.load_state_dict(state["learner"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, examples, done_s, looking = (state[key] for key in ("step", "examples", "done_s", "looking"))
        if likeness is not None and state["likeness"] is not None:
            likeness.load_state_dict(state["likeness"])
        world.say(f"goes on from step {step}, {done_s:.0f} s")
    learner.compile_blocks(world)
    clock = Clock(world, seconds, max_steps=max_steps, done_s=done_s, pause_s=pause_s)
    if step == 0 and settings.looking_share > 0:
        looking = _learn_to_look(world, learner, batches, settings, seconds=seconds, max_steps=max_steps)
        average = Average(learner, learner.copied(), decay=settings.average_decay)
    if likeness is not None and likeness.measured is None:
        likeness.learn(max_steps=max_steps)
    batches.look(learner.look)
    black = learner.look_at_black().detach()
    names = ("flow_loss", "flow_loss_on_faces") + (("likeness_loss",) if likeness is not None else ())
    take_step = TrainingStep(
        world,
        functools.partial(_losses, world, learner, batches, black, settings, likeness),
        optimizer,
        average,
        num_shown=len(names),
        generators=(batches.generator,),
    )
    measured: dict[str, Any] = {"looking": looking, "reader": likeness.measured if likeness is not None else None}

    def save() -> None:
        state = {
            "learner": learner.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "examples": examples,
            "done_s": clock.elapsed_s,
            "looking": looking,
            "likeness": likeness.state_dict() if likeness is not None else None,
        }
        partial = checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(checkpoint)

    saved_s = clock.elapsed_s
    began_s, began_examples = clock.elapsed_s, examples
    while (progress := clock.progress(step)) < 1.0 and not clock.is_paused:
        factor = warm_up_and_cosine(step, progress, warm_up_steps=settings.warm_up_steps)
        take_step(settings.learning_rate * factor)
        step += 1
        examples += settings.batch * world.size
        if step % SHOW_EVERY_STEPS == 0:
            shown = dict(zip(names, take_step.shown(), strict=True))
            rate = (examples - began_examples) / (clock.elapsed_s - began_s)
            world.say(
                f"flow step {step}, {progress:.0%}, {clock.elapsed_s:.0f} s, {rate:.0f} examples a second: "
                + ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
            )
            measured |= {name: round(value, 5) for name, value in shown.items()}
        if world.is_first and clock.elapsed_s - saved_s > settings.save_every_s:
            saved_s = clock.elapsed_s
            save()
    if world.is_first:
        save()
    world.barrier()
    measured |= {
        "steps": step,
        "seconds": round(clock.elapsed_s, 1),
        "examples": examples,
        "processes": world.size,
        "is_whole": progress >= 1.0,
    }
    return average.module.eval(), measured


def _losses(
    world: World,
    learner: Learner,
    batches: Batches,
    black: Tensor,
    settings: FlowSettings,
    likeness: Likeness | None,
) -> tuple[Tensor, Tensor]:
    """What is to be made small, and (2,) or with likeness (3,) to show."""
    batch = batches.batch(settings.batch, settings.drops, sigma=training_sigmas(batches, settings))
    with world.autocast():
        predicted = learner.velocity(batch.noisy, batch.sigma, conditions(learner, batch, black, batches))
    if likeness is None:
        return batch.losses(predicted, batch.velocity, face_weight=settings.face_weight)
    leaf = predicted.detach().float().requires_grad_()
    flow, shown = batch.losses(leaf, batch.velocity, face_weight=settings.face_weight)
    gradient, missed = likeness.gradient_on(leaf, flow, batch)
    # Its value says nothing; its gradient is the one that is wanted.
    return (predicted * gradient).sum(), torch.cat((shown, missed[None]))


def conditions(learner: Learner, batch: Batch, black: Tensor, batches: Batches) -> Conditions:
    """A batch's conditions before distillation. Nobody is a black picture at any strength, or any picture at none.

    ``black``: the black picture's embedding, (1, projection_dim).
    """
    txt, vec = learner.read(batch.tokens)
    count = len(batch.rows)
    is_black = batch.is_nobody & (batches.uniform(count) < 0.5)
    scale = torch.where(batch.is_nobody, torch.where(is_black, batches.uniform(count), 0.0), 1.0)
    return Conditions(
        txt=txt,
        vec=vec,
        embeddings=torch.where(is_black[:, None], black, batch.embeddings),
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
    """The vision tower alone: two views of each person are nearer to each other than to anyone else's, and a linear map
    of each says what traits the face has. A fiftieth of the people are kept from it, to see how it does with strangers:
    a tower that has met too few people knows their faces by heart, and reads others' badly."""
    corpus = batches.corpus
    scores = trait_scores(corpus.shapes, corpus.traits)
    num_known = corpus.num_identities - max(1, corpus.num_identities // 50)
    learner.vision.requires_grad_(True)
    head = nn.Linear(learner.profile.clip_vision.projection_dim, scores.shape[1], device=world.device)
    tower = nn.ModuleDict({"vision": learner.vision, "head": head})
    optimizer = Optimizer(tower, muon_prefixes=MUON_PREFIXES, weight_decay=settings.weight_decay)
    clock = Clock(world, seconds * settings.looking_share, max_steps=max_steps)

    def losses() -> tuple[Tensor, Tensor]:
        rows = batches.rows(settings.looking_batch, among=num_known * corpus.num_views)
        crops = torch.cat([batches.crops(rows), batches.crops(corpus.another_view(rows, batches.generator))])
        with world.autocast():
            embeddings = learner.look(crops)
        people = rows // corpus.num_views
        said = head(embeddings.float())
        return who_and_which_traits(embeddings, said, people, scores, trait_weight=settings.trait_weight)

    names = ("contrast_loss", "trait_loss")
    take_step = TrainingStep(world, losses, optimizer, None, num_shown=len(names), generators=(batches.generator,))
    measured = take_steps(
        world,
        clock,
        take_step,
        stage="looking",
        names=names,
        learning_rate=settings.looking_rate,
        warm_up_steps=100,
        floor=0.3,
    )
    learner.vision.requires_grad_(False)
    # Few strangers come several times: as many pictures as Batches.look takes at once, so that nothing compiles anew.
    turn = torch.arange(min(NUM_TRIED, len(corpus)), device=world.device) % (corpus.num_identities - num_known)
    for name, people in (("known", turn), ("strangers", num_known + turn)):
        rows = people * corpus.num_views
        crops = reference_crops(corpus.images[rows], corpus.faces[rows], None)
        with torch.no_grad(), world.autocast():
            embeddings = learner.look(crops)
            missed = nn.functional.mse_loss(head(embeddings), scores[people])
        measured[f"trait_loss_of_{name}"] = round(float(missed), 6)
    world.say(f"looking: {measured}")
    return measured
