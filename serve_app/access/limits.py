"""The limiter as the door asks it: in this process, or wherever :mod:`serve_app.access.shared` keeps it."""

from __future__ import annotations

from typing import Protocol

from serve_app.access.limiter import Limiter, Refusal
from serve_app.access.settings import ClientLimits


class Limits(Protocol):
    """See :class:`serve_app.access.limiter.Limiter`. None of these fails."""

    async def enter(self, visit: str, client: str, limits: ClientLimits) -> Refusal | None:
        """Let a request in, or say why not."""
        ...

    async def reserve(self, visit: str, work: float) -> Refusal | float:
        """Promise a request its device seconds."""
        ...

    def leave(self, visit: str, *, device_s: float, work: float) -> None:
        """A request ended. Waits for nothing."""
        ...


class LocalLimits:
    """A limiter of this process alone."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    async def enter(self, visit: str, client: str, limits: ClientLimits) -> Refusal | None:
        """See :class:`Limits`."""
        return self._limiter.enter(visit, client, limits)

    async def reserve(self, visit: str, work: float) -> Refusal | float:
        """See :class:`Limits`."""
        return self._limiter.reserve(visit, work)

    def leave(self, visit: str, *, device_s: float, work: float) -> None:
        """See :class:`Limits`."""
        self._limiter.leave(visit, device_s=device_s, work=work)
