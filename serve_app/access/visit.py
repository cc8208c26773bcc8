"""One request that was let in: whose it is, and what it takes of a device."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import math
import secrets
from collections.abc import Callable
from typing import Final

from starlette.types import Scope

from serve_app.access.keys import Client
from serve_app.access.limiter import Refusal
from serve_app.access.limits import Limits
from serve_app.access.settings import AccessSettings
from serve_app.errors import LimitReachedError, QuotaTooSmallError, ServeAppError
from serve_app.stages import Priority

_SCOPE_KEY: Final = "serve_app.client"


@dataclasses.dataclass(kw_only=True, slots=True)
class Visit:
    """A request between its entering and its leaving.

    Attributes:
        client: whose it is; its limits count.
        limits: who counts; None where nothing is limited.
        on_refused: told the name of the limit that was reached.
        device_s, work: see :meth:`serve_app.access.limiter.Limiter.leave`.
    """

    client: Client
    limits: Limits | None
    on_refused: Callable[[str], None]
    device_s: float = 0.0
    work: float = 0.0
    _id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))

    @property
    def has_quota(self) -> bool:
        """Whether device seconds are limited."""
        return self.limits is not None and self.client.limits.device_s is not None

    async def enter(self) -> None:
        """Ask to be let in.

        Raises:
            LimitReachedError: not now.
        """
        if self.limits is None or not self.client.limits.are_any:
            return
        try:
            refusal = await self.limits.enter(self._id, self.client.name, self.client.limits)
        except asyncio.CancelledError:
            self.leave()  # it may be in already, and only the answer on its way
            raise
        if refusal is not None:
            raise self._error(refusal)

    async def reserve(self, work: float) -> float:
        """Seconds of the device that are promised.

        Raises:
            LimitReachedError, QuotaTooSmallError: there are not so many.
        """
        if self.limits is None or not self.has_quota:
            return 0.0
        promised_s = await self.limits.reserve(self._id, work)
        if isinstance(promised_s, Refusal):
            raise self._error(promised_s)
        return promised_s

    def leave(self) -> None:
        """It is over."""
        if self.limits is not None and self.client.limits.are_any:
            self.limits.leave(self._id, device_s=self.device_s, work=self.work)

    def _error(self, refusal: Refusal) -> ServeAppError:
        self.on_refused(refusal.limit)
        if math.isinf(refusal.retry_after_s):
            return QuotaTooSmallError(refusal.message)
        return LimitReachedError(refusal.message, refusal.retry_after_s)


current_visit: contextvars.ContextVar[Visit | None] = contextvars.ContextVar("current_visit", default=None)
"""The request that this task, or the one that started it, works for. Between the door and the device lie the routes,
which have no business with limits."""


def remember_client(scope: Scope, client: Client) -> None:
    """Keep who came with a key."""
    scope[_SCOPE_KEY] = client


def client_name(scope: Scope) -> str:
    """The name of the client whose key the request carried; empty where keys are off, for then it would be a place."""
    client: Client | None = scope.get(_SCOPE_KEY)
    return "" if client is None else client.name


def max_priority(scope: Scope, settings: AccessSettings) -> Priority:
    """The highest priority that whoever sent a request may ask for."""
    client: Client | None = scope.get(_SCOPE_KEY)
    if client is None:
        return settings.limits.max_priority or "normal"
    return client.limits.max_priority or "high"
