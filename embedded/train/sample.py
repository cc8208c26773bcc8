"""Drawing with networks in training: contact sheets to look at, before anything is exported."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedded.train.batches import Batches, Drops
from embedded.train.captions import Tokens, token_ids
from embedded.train.corpus import Corpus
from embedded.train.networks import Conditions, Learner
from embedded.train.references import reference_crops
from embedded.train.world import World
from engine.model.autoencoder import LatentDecoder
from engine.profile import AutoencoderParams, DrawnSize
from engine.sampling import latents as latent_tokens
from engine.sampling.guidance import euler_step
from engine.sampling.schedule import sigmas

Velocity = Callable[[Tensor, Tensor, Conditions], Tensor]
"""Noisy tokens, σ and conditions to velocity: a network's, or a combination of several passes."""

SIZE = DrawnSize(width_px=256, height_px=256)

SHEET_PROMPTS = (
    "A professional AI influencer portrait, facing the camera, blue background",
    "Portrait of a person with pink hair, green background, soft studio light",
    "A portrait photo, wearing round glasses, looking to the left, gray background",
    "A photo, smiling, on a beach, bright daylight",
)


@torch.no_grad()
def draw(
    world: World, velocity: Velocity, given: Conditions, *, seeds: Sequence[int], num_channels: int, num_steps: int = 20
) -> Tensor:
    """Latents (B, C, h, w) by the engine's own sampler settings: Euler, fixed shift, one seed a picture."""
    noise = [latent_tokens.pack(latent_tokens.noise(seed, SIZE, num_channels)) for seed in seeds]
    tokens = torch.stack(noise).to(world.device)
    levels = sigmas("simple", num_steps=num_steps, num_tokens=SIZE.num_tokens)
    for sigma, sigma_next in itertools.pairwise(levels):
        with world.autocast():
            out = velocity(tokens, torch.full((len(tokens),), sigma, device=world.device), given)
        tokens = euler_step(tokens, out, sigma=sigma, sigma_next=sigma_next)
    return torch.stack([latent_tokens.unpack(row, SIZE) for row in tokens])


@torch.no_grad()
def conditions_for(
    world: World, learner: Learner, prompts: Sequence[str], crops: Tensor, *, scale: float, guidance: float
) -> Conditions:
    """One prompt and one reference crop a picture."""
    ids = token_ids(list(prompts), learner.profile)
    with world.autocast():
        txt, vec = learner.read(Tokens(t5=ids.t5.to(world.device), clip=ids.clip.to(world.device)))
        embeddings = learner.look(crops)
    fill = torch.ones(len(crops), device=world.device)
    return Conditions(txt=txt, vec=vec, embeddings=embeddings, scale=scale * fill, guidance=guidance * fill)


def sheet(
    world: World,
    learner: Learner,
    autoencoder: Any,
    corpus: Corpus,
    params: AutoencoderParams,
    *,
    num_people: int = 8,
    velocity: Velocity | None = None,
) -> npt.NDArray[np.uint8]:
    """A row a person: reference, then every prompt at full default settings, then one prompt over four strengths."""
    num_people = min(num_people, corpus.num_identities)
    rows = torch.arange(num_people, device=world.device) * corpus.num_views
    crops = reference_crops(corpus.images[rows], corpus.faces[rows], None)
    decoder = LatentDecoder(autoencoder, params)
    columns = [corpus.images[rows].cpu().numpy()]
    shown = [(prompt, 0.8, 3.5) for prompt in SHEET_PROMPTS]
    shown += [(SHEET_PROMPTS[0], scale, 3.5) for scale in (0.0, 0.4, 1.0)] + [(SHEET_PROMPTS[0], 0.8, 1.0)]
    for prompt, scale, guidance in shown:
        given = conditions_for(world, learner, [prompt] * num_people, crops, scale=scale, guidance=guidance)
        drawn = draw(
            world,
            velocity or learner.velocity,
            given,
            seeds=range(num_people),
            num_channels=params.z_channels,
        )
        columns.append(np.concatenate([decoder.decode(part) for part in drawn.split(8)]))
    return np.concatenate([np.concatenate(list(column), axis=0) for column in columns], axis=1)


@torch.no_grad()
def measured_on(world: World, learner: Learner, batches: Batches, *, count: int = 512) -> dict[str, float]:
    """Flow loss at set noise levels, and how often a person's other view is found among ``count`` by embedding."""
    corpus = batches.corpus
    batches.look(learner.look)
    count = min(count, len(corpus))
    sigma = torch.linspace(0.05, 0.95, count, device=world.device)
    batch = batches.batch(count, Drops(text=0, image=0, both=0), sigma=sigma)
    people = torch.arange(min(256, corpus.num_identities), device=world.device) * corpus.num_views
    with world.autocast():
        txt, vec = learner.read(batch.tokens)
        one = torch.ones_like(sigma)
        given = Conditions(txt=txt, vec=vec, embeddings=batch.embeddings, scale=one, guidance=one)
        out = learner.velocity(batch.noisy, sigma, given).float()
        nobody = learner.velocity(batch.noisy, sigma, dataclasses.replace(given, scale=0 * one)).float()
        views = [
            learner.look(reference_crops(corpus.images[people + view], corpus.faces[people + view], None)).float()
            for view in (0, min(1, corpus.num_views - 1))
        ]
    first, second = (torch.nn.functional.normalize(view, dim=1) for view in views)
    found = (first @ second.T).argmax(1) == torch.arange(len(people), device=world.device)
    shown = [batch.losses(each, batch.velocity, face_weight=1.0)[1].tolist() for each in (out, nobody)]
    return {
        "flow_loss": shown[0][0],
        "flow_loss_on_faces": shown[0][1],
        "flow_loss_without_person": shown[1][0],
        "flow_loss_without_person_on_faces": shown[1][1],
        "found_among": float(len(people)),
        "found_share": float(found.float().mean()),
    }
