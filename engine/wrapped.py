"""An engine around an engine: what a wrapper does not change is passed through once, here."""

from __future__ import annotations

from engine.profile import ModelProfile
from engine.protocol import ImageEngine
from engine.request import EngineEvent, EngineStats, ImageRequest, Queued


class WrappedEngine:
    """The engine it is given. A subclass overrides what it changes.

    Args:
        engine: does the work. See :class:`engine.protocol.ImageEngine` for the contract of every method.
    """

    def __init__(self, engine: ImageEngine) -> None:
        self._engine = engine

    @property
    def profile(self) -> ModelProfile:
        """The inner engine's, as everything below."""
        return self._engine.profile

    @property
    def has_work(self) -> bool:
        """Whether a ``step`` would do anything."""
        return self._engine.has_work

    def submit(self, request: ImageRequest) -> Queued:
        """Take a request in."""
        return self._engine.submit(request)

    def cancel(self, request_id: str) -> bool:
        """Drop a request at the next step."""
        return self._engine.cancel(request_id)

    def step(self) -> list[EngineEvent]:
        """One denoising step."""
        return self._engine.step()

    def warm_up(self) -> None:
        """Run what the first request would otherwise pay for."""
        self._engine.warm_up()

    def stats(self) -> EngineStats:
        """Counters and current load."""
        return self._engine.stats()

    def check(self) -> None:
        """Raise EngineStoppedError where the engine can't serve."""
        self._engine.check()

    def close(self) -> None:
        """Let go of the device."""
        self._engine.close()
