"""The one interface between an engine and whoever drives it (:mod:`engine.loop`, tests, benchmarks)."""

from __future__ import annotations

from typing import Protocol

from engine.profile import ModelProfile
from engine.request import EngineEvent, EngineStats, ImageRequest, Queued


class ImageEngine(Protocol):
    """Draws pictures step by step with whoever is in the house.

    ``submit``, ``cancel``, ``stats`` and ``has_work`` may be called from any thread at any time, also while a step
    runs; ``warm_up`` and ``step`` from one thread at a time. A request's first event is what ``submit`` returns. It
    ends exactly once, with ``Finished`` or ``Failed`` among the events of some ``step``: where it is cancelled or past
    its ``max_wait_s``, before it takes another step.
    """

    @property
    def profile(self) -> ModelProfile:
        """The model this engine serves."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether a ``step`` would do anything."""
        ...

    def submit(self, request: ImageRequest) -> Queued:
        """Take a request in, and say when its turn will come. It may join at the next step.

        Raises:
            InvalidRequestError: the profile does not allow these values, or the id is already here.
            EngineBusyError: too much work is here, or too much for its ``max_wait_s``; says when to try again.
            DeadlineExceededError: it takes longer than its ``max_wait_s`` even alone.
            EngineStoppedError: the engine is closed or broken.
        """
        ...

    def cancel(self, request_id: str) -> bool:
        """Drop a request at the next step. False where no such request is here (any more)."""
        ...

    def step(self) -> list[EngineEvent]:
        """Choose who takes part, run one denoising step for them, and say what happened.

        A failure that concerns some requests ends those with ``Failed``. One that concerns the engine raises
        EngineStoppedError, from then on always.
        """
        ...

    def warm_up(self) -> None:
        """Run what the first request would otherwise pay for, and measure what work costs here."""
        ...

    def stats(self) -> EngineStats:
        """Counters and current load."""
        ...

    def check(self) -> None:
        """Raise EngineStoppedError where the engine can't serve, or a conservation law is broken."""
        ...

    def close(self) -> None:
        """Let go of the device. Requests still here end with ``Failed`` at the next ``step``."""
        ...
