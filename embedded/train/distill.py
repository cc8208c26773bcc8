"""Stage 3: guidance goes into the network (arXiv 2210.03142), so that one pass a step draws what several would.

The product's defaults are one pass a step, guidance 3.5 and a strength of 0.8. A network that only matched the flow
would draw blurred averages there. So a student learns, from frozen averaged weights, the combination

    v(∅, nobody) + w·(v(text, nobody) − v(∅, nobody)) + f·(v(text, person) − v(text, nobody))

with w = 1 + text_gain·(guidance − 1) and f = strength·(1 + image_gain·(guidance − 1)). Guidance 1 at strength 1 is the
teacher itself, so that true guidance (cfg > 1, with guidance 1) works as before. The strength moves the velocity in
a straight line from nobody to the person, by construction; nothing else would promise that more strength is more
likeness. Text encoders and vision tower stay as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
from torch import Tensor

from embedded.train.batches import Batches, Drops
from embedded.train.muon import Optimizer
from embedded.train.networks import UNDISTILLED, Average, Conditions, Learner
from embedded.train.step import TrainingStep, take_steps
from embedded.train.world import Clock, World
from engine.sampling.schedule import COMFY_FLUX_SHIFT

DEFAULT_GUIDANCE, DEFAULT_STRENGTH = 3.5, 0.8

_SHOWN = ("loss", "loss_on_faces")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """How guidance is distilled.

    Attributes:
        text_gain, image_gain: how fast the weights of text and person grow with guidance; see the module's docstring.
        max_guidance: more than this draws as this.
        face_weight: of errors on the face, where those elsewhere count 1.
    """

    batch: int = 512
    learning_rate: float = 1e-3
    warm_up_steps: int = 50
    text_gain: float = 0.5
    image_gain: float = 1.6
    max_guidance: float = 6.0
    average_decay: float = 0.99
    face_weight: float = 5.0
    drops: Drops = dataclasses.field(default_factory=lambda: Drops(text=0.06, image=0.08, both=0.06))


def distill(
    world: World,
    teacher: Learner,
    batches: Batches,
    settings: DistillSettings,
    *,
    seconds: float,
    max_steps: int | None = None,
) -> tuple[Learner, dict[str, Any]]:
    """A student of ``teacher``, which is left as it is. Returns the student's average, and what was measured.

    ``batches``: their references already looked at by the teacher's vision tower, which the student keeps.
    """
    student = teacher.copied().train()
    for trained in (student.flux, student.adapter):
        trained.requires_grad_(True)
    average = Average(student, student.copied(), decay=settings.average_decay)
    optimizer = Optimizer(student, muon_prefixes=("flux.double_blocks.", "flux.single_blocks."))
    student.compile_blocks(world)
    teacher.compile_blocks(world)
    black = teacher.look_at_black().detach()
    clock = Clock(world, seconds, max_steps=max_steps)
    take_step = TrainingStep(
        world,
        functools.partial(_losses, world, teacher, student, batches, black, settings),
        optimizer,
        average,
        num_shown=len(_SHOWN),
        generators=(batches.generator,),
    )
    measured = take_steps(
        world,
        clock,
        take_step,
        stage="distill",
        names=_SHOWN,
        learning_rate=settings.learning_rate,
        warm_up_steps=settings.warm_up_steps,
    )
    world.barrier()
    measured["examples"] = measured["steps"] * settings.batch * world.size
    return average.module.eval(), measured


def guided_velocity(
    teacher: Learner, noisy: Tensor, sigma: Tensor, given: Conditions, blank: Conditions, settings: DistillSettings
) -> Tensor:
    """What the student should say.

    Args:
        given: text, the person's embedding, and the strength and guidance that are asked for.
        blank: the same without text.
    """
    zero, one = torch.zeros_like(given.scale), torch.ones_like(given.scale)
    plain = torch.full_like(given.guidance, UNDISTILLED)
    nothing = teacher.velocity(noisy, sigma, dataclasses.replace(blank, scale=zero, guidance=plain))
    text = teacher.velocity(noisy, sigma, dataclasses.replace(given, scale=zero, guidance=plain))
    person = teacher.velocity(noisy, sigma, dataclasses.replace(given, scale=one, guidance=plain))
    more = given.guidance.clamp(max=settings.max_guidance) - 1
    text_weight = (1 + settings.text_gain * more)[:, None, None]
    person_weight = (given.scale * (1 + settings.image_gain * more))[:, None, None]
    return nothing + text_weight * (text - nothing) + person_weight * (person - text)


def _losses(
    world: World, teacher: Learner, student: Learner, batches: Batches, black: Tensor, settings: DistillSettings
) -> tuple[Tensor, Tensor]:
    count = settings.batch
    with torch.no_grad(), world.autocast():
        t = batches.uniform(count).clamp(1e-3, 1)
        shift = math.exp(COMFY_FLUX_SHIFT)
        batch = batches.batch(count, settings.drops, sigma=(shift * t / (1 + (shift - 1) * t)).clamp(max=1 - 1e-4))
        noisy, sigma = batch.noisy, batch.sigma
        txt, vec = teacher.read(batch.tokens)
        blank_txt, blank_vec = teacher.read(batches.empty)
        embeddings = batch.embeddings
        strength, guidance = _asked_for(batches, count)
        given = Conditions(txt=txt, vec=vec, embeddings=embeddings, scale=strength, guidance=guidance)
        given = dataclasses.replace(given, scale=torch.where(batch.is_nobody, 0.0, strength))
        blank = dataclasses.replace(given, txt=blank_txt.expand_as(txt), vec=blank_vec.expand_as(vec))
        goal = guided_velocity(teacher, noisy, sigma, given, blank, settings).float()
        # Nobody is shown either as a black picture at the strength that was asked for, or as strength 0.
        is_black = batch.is_nobody & (batches.uniform(count) < 0.5)
        shown = dataclasses.replace(
            given,
            embeddings=torch.where(is_black[:, None], black, embeddings),
            scale=torch.where(is_black, strength, given.scale),
        )
    with world.autocast():
        predicted = student.velocity(noisy, sigma, shown)
    return batch.losses(predicted, goal, face_weight=settings.face_weight)


def _asked_for(batches: Batches, count: int) -> tuple[Tensor, Tensor]:
    """Strengths and guidances (count,): the defaults often, plain ones often, and everything that may be asked for."""
    chance = batches.uniform(count)
    strength = torch.where(chance < 0.4, DEFAULT_STRENGTH, torch.where(chance < 0.55, 1.0, batches.uniform(count)))
    chance = batches.uniform(count)
    spread = 6 * batches.uniform(count)
    far = 6 * 5 ** batches.uniform(count)  # 6 … 30, the profile's ceiling
    guidance = torch.where(chance < 0.4, DEFAULT_GUIDANCE, torch.where(chance < 0.6, UNDISTILLED, spread))
    return strength, torch.where(chance > 0.96, far, guidance)
