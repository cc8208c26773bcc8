"""Several pictures of one request, each measured against the reference: how many are drawn, and which is the answer.

Without ``min_similarity`` all are drawn at once and the best is the answer. With it they are drawn one after another
until one is alike enough: where one picture fills the device, all at once would not be there sooner, and what is not
drawn costs nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import Final

from engine.errors import FaceNotFoundError
from engine.face.identity import IdentityVector, similarity
from engine.request import MAX_SEED
from serve_app.errors import SimilarityNotReachedError
from serve_app.stages import (
    Backend,
    DrawEvent,
    DrawQueued,
    DrawRestarted,
    DrawResult,
    DrawStep,
    FaceJob,
    IdentityJob,
    OnDrawEvent,
    StageStarting,
)

_DIGITS: Final = 4
"""Of a similarity, everywhere alike: a picture at 0.69996 would be told to have the 0.7 that it is refused for."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LikenessWish:
    """What a request asks of likeness.

    Attributes:
        num_candidates: pictures to choose from, at most.
        min_similarity: what the answer must reach, 0 … 1; at 0 a face must be there. None takes the best there is.
        is_scored: whether the similarity is wanted all the same.
    """

    num_candidates: int = 1
    min_similarity: float | None = None
    is_scored: bool = False

    @property
    def is_choosy(self) -> bool:
        """Whether the answer depends on similarity."""
        return self.num_candidates > 1 or self.min_similarity is not None

    @property
    def is_measured(self) -> bool:
        """Whether similarity is needed at all."""
        return self.is_choosy or self.is_scored

    @property
    def is_at_once(self) -> bool:
        """Whether all candidates are drawn, whatever the first is like."""
        return self.min_similarity is None

    def is_reached_by(self, candidate: Candidate) -> bool:
        """Whether a candidate is alike enough to be the answer."""
        if self.min_similarity is None:
            return True
        return candidate.similarity is not None and candidate.similarity >= self.min_similarity


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One picture that was drawn.

    Attributes:
        draw_s: seconds from handing it to the Flux stage until the picture was back.
        similarity: to the reference, 0 … 1; None where it was not measured, or one of the two shows no face.
        identity_s: seconds that measuring took.
    """

    seed: int
    result: DrawResult
    draw_s: float
    similarity: float | None
    identity_s: float


def seed_of(seed: int, index: int) -> int:
    """The seed of the ``index``-th candidate: the request's own, then the ones after it; 0 follows the largest."""
    return (seed + index) % (MAX_SEED + 1)


async def draw_candidates(wish: LikenessWish, draw: Callable[[int], Awaitable[Candidate]]) -> tuple[Candidate, ...]:
    """The candidates in the order of their seeds. What ends one ends all, and none goes on after that.

    Args:
        draw: draws and measures one, by its index.
    """
    if wish.is_at_once:
        return await _all(*(draw(index) for index in range(wish.num_candidates)))
    candidates: list[Candidate] = []
    while len(candidates) < wish.num_candidates:
        candidates.append(await draw(len(candidates)))
        if wish.is_reached_by(candidates[-1]):
            break
    return tuple(candidates)


async def _all(*drawings: Awaitable[Candidate]) -> tuple[Candidate, ...]:
    tasks = [asyncio.ensure_future(drawing) for drawing in drawings]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def best_of(candidates: tuple[Candidate, ...], wish: LikenessWish, *, cost_usd: float) -> Candidate:
    """The most similar one; the first of equals. One without a face comes after all others.

    Args:
        cost_usd: what all of them cost, for the error.

    Raises:
        SimilarityNotReachedError: not even that one is what was asked for.
    """
    best = max(candidates, key=lambda one: -1.0 if one.similarity is None else one.similarity)
    if wish.min_similarity is not None and not wish.is_reached_by(best):
        raise SimilarityNotReachedError(
            min_similarity=wish.min_similarity,
            similarities={one.seed: one.similarity for one in candidates},
            cost_usd=cost_usd,
        )
    return best


class LikenessMeter:
    """Measures pictures of one request against its reference.

    Attributes:
        reference_s: seconds that measuring the reference took.
    """

    def __init__(self, backend: Backend, reference: IdentityVector | None, *, reference_s: float) -> None:
        self._backend = backend
        self._reference = reference
        self.reference_s = reference_s

    @classmethod
    async def of(cls, backend: Backend, job: FaceJob, wish: LikenessWish) -> LikenessMeter:
        """A meter for the request's reference, made before anything is drawn.

        Raises:
            FaceNotFoundError: no face in the reference, but the answer depends on similarity to it.
        """
        started_s = time.perf_counter()
        found = await backend.identify(IdentityJob(data=job.data, media_type=job.media_type))
        if found.vector is None and wish.is_choosy:
            raise FaceNotFoundError(
                "no face was found in the picture, so nothing can be chosen by likeness to it; send a photo that shows "
                "one face upright and clearly, or leave out num_candidates and min_similarity"
            )
        return cls(backend, found.vector, reference_s=time.perf_counter() - started_s)

    @property
    def has_reference(self) -> bool:
        """Whether the reference shows a face. Without one nothing can be measured."""
        return self._reference is not None

    async def similarity(self, picture: IdentityJob) -> float | None:
        """Of the largest face in a picture to that of the reference; None where there is no face."""
        if self._reference is None:
            return None
        found = await self._backend.identify(picture)
        return None if found.vector is None else round(similarity(self._reference, found.vector), _DIGITS)


class CandidateProgress:
    """Tells of all candidates as of one drawing, so that whoever listens needs to know of one only.

    Where they are drawn one after another, it speaks as if all will be.
    """

    def __init__(self, on_event: OnDrawEvent, wish: LikenessWish) -> None:
        self._on_event = on_event
        self._wish = wish
        self._steps = [0] * wish.num_candidates
        self._remaining_s = [0.0] * wish.num_candidates
        self._whole_s = 0.0  # of one candidate, at the latest pace

    def listener(self, index: int) -> OnDrawEvent:
        """Hears how one candidate goes."""
        return lambda event: self._hear(index, event)

    def _hear(self, index: int, event: DrawEvent) -> None:
        match event:
            case DrawQueued() if index == 0:
                device_s = self._wish.num_candidates * event.predicted_device_s
                self._on_event(dataclasses.replace(event, predicted_device_s=device_s))
            case DrawQueued():
                pass
            case DrawStep():
                self._on_event(self._step(index, event))
            case DrawRestarted():
                self._steps[index] = 0
                self._on_event(event)
            case StageStarting():
                self._on_event(event)

    def _step(self, index: int, event: DrawStep) -> DrawStep:
        self._steps[index], self._remaining_s[index] = event.step, event.remaining_s
        if event.step < event.num_steps:
            self._whole_s = event.remaining_s * event.num_steps / (event.num_steps - event.step)
        if self._wish.is_at_once:
            remaining_s = max(self._remaining_s)
        else:
            remaining_s = event.remaining_s + (self._wish.num_candidates - 1 - index) * self._whole_s
        num_steps = self._wish.num_candidates * event.num_steps
        return dataclasses.replace(event, step=sum(self._steps), num_steps=num_steps, remaining_s=remaining_s)
