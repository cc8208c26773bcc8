"""One limiter for all ingress replicas: a small named Ray actor on the head node.

Limits divided by the number of replicas would be wrong whenever a client's requests do not spread evenly, and change
with every scaling. One actor is asked twice a request, for about a millisecond each (docs/security.md has what was
measured), before work of seconds.

Where it can't be reached, each ingress replica counts for itself with the same numbers: clients then get at most as
many times their limits as there are replicas, instead of everything (failing open) or nothing (failing closed). Keys
do not depend on it; they are checked in the ingress.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import ray
from ray._private import state  # what ray.util.state gives would need the dashboard
from ray.exceptions import RayError

from serve_app.access.limiter import Limiter, Refusal
from serve_app.access.limits import LocalLimits
from serve_app.access.settings import ClientLimits
from serve_app.head_actor import head_actor
from serve_app.one_thread import OneThread

logger = logging.getLogger(__name__)

VERSION: Final = 1
"""Of the actor's methods. It outlives updates of the application, whose new replicas must not meet an actor of old."""

TIMEOUT_S: Final = 1.0
"""Far above what an answer takes, far below what a picture takes."""

PAUSE_S: Final = 5.0
"""After a failure nobody asks for so long: a second of waiting for every request would be worse than local counts."""

MIN_LOOK_PERIOD_S: Final = 0.3
"""How often the actor looks for dead replicas at most, which takes a millisecond or two."""

MAX_SILENCE_S: Final = 600.0
"""Replicas say every few seconds that they are there."""


class LimiterActor:
    """The limiter in a process of its own.

    It must survive updates of the application, whose replicas come and go, so none of them owns it; it ends itself
    when it has heard of none for ``max_silence_s`` and has nothing to remember.
    """

    def __init__(self, max_visit_s: float, max_silence_s: float = MAX_SILENCE_S) -> None:
        self._limiter = Limiter(max_visit_s=max_visit_s)
        self._lock = threading.Lock()
        self._looked_s = float("-inf")
        self._max_silence_s = max_silence_s
        self._heard_s = time.monotonic()
        threading.Thread(target=self._end_when_alone, daemon=True).start()

    def keep(self) -> None:
        """An ingress replica is there."""
        self._heard_s = time.monotonic()

    def enter(self, visit: str, client: str, limits: ClientLimits) -> Refusal | None:
        """See :class:`serve_app.access.limits.Limits`."""
        with self._lock:
            refusal = self._limiter.enter(visit, client, limits)
            if refusal is not None and self._bury(client):
                refusal = self._limiter.enter(visit, client, limits)
            return refusal

    def reserve(self, visit: str, work: float) -> Refusal | float:
        """See :class:`serve_app.access.limits.Limits`."""
        with self._lock:
            promised_s = self._limiter.reserve(visit, work)
            if isinstance(promised_s, Refusal) and self._bury(self._limiter.client_of(visit)):
                promised_s = self._limiter.reserve(visit, work)
            return promised_s

    def leave(self, visit: str, device_s: float, work: float) -> None:
        """See :class:`serve_app.access.limits.Limits`."""
        with self._lock:
            self._limiter.leave(visit, device_s=device_s, work=work)

    def _bury(self, client: str) -> bool:
        """Let go of requests whose ingress replica died with them, before they are held against a client. Serve's
        proxy may just now be sending one of them again."""
        now_s = time.monotonic()
        if now_s - self._looked_s < MIN_LOOK_PERIOD_S:
            return False
        self._looked_s = now_s
        visits = self._limiter.at_work(client)
        dead = {source for source in {visit.partition("/")[0] for visit in visits} if _is_dead(source)}
        ghosts = [visit for visit in visits if visit.partition("/")[0] in dead]
        for ghost in ghosts:
            self._limiter.abandon(ghost)
        return bool(ghosts)

    def _end_when_alone(self) -> None:
        me = ray.get_runtime_context().current_actor
        while True:
            time.sleep(self._max_silence_s / 10.0)
            with self._lock:
                if time.monotonic() - self._heard_s > self._max_silence_s and self._limiter.is_blank():
                    ray.kill(me, no_restart=True)


def _is_dead(actor_id: str) -> bool:
    """Whether Ray knows that an actor has ended. That it knows nothing of it says nothing."""
    if not actor_id:
        return False
    return bool(state.actors(actor_id).get("State") == "DEAD")


class SharedLimits:
    """See :class:`serve_app.access.limits.Limits`.

    Args:
        find: the actor's handle; may block, and raises where there can be none now.
        source: id of the actor that asks, by which its death shows; empty where it is none.
        max_visit_s: how long a request can take at most.
        on_lost: told of every time the actor could not be reached.
    """

    def __init__(
        self,
        find: Callable[[], Any],
        *,
        max_visit_s: float,
        source: str = "",
        on_lost: Callable[[], None] = lambda: None,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = OneThread(find)
        self._local = LocalLimits(Limiter(max_visit_s=max_visit_s, clock=clock))
        self._source = source
        self._on_lost = on_lost
        self._timeout_s = timeout_s
        self._clock = clock
        self._actor: Any = None
        self._paused_until_s = float("-inf")
        self._local_visits: set[str] = set()

    async def enter(self, visit: str, client: str, limits: ClientLimits) -> Refusal | None:
        """See :class:`serve_app.access.limits.Limits`."""
        try:
            refusal: Refusal | None = await self._ask("enter", self._named(visit), client, limits)
        except _LostError as lost:
            if lost.is_late and self._actor is not None:
                self._actor.leave.remote(self._named(visit), 0.0, 0.0)
            refusal = await self._local.enter(visit, client, limits)
            if refusal is None:
                self._local_visits.add(visit)
        return refusal

    async def reserve(self, visit: str, work: float) -> Refusal | float:
        """See :class:`serve_app.access.limits.Limits`."""
        if visit not in self._local_visits:
            try:
                answer: Refusal | float = await self._ask("reserve", self._named(visit), work)
                return answer
            except _LostError:
                pass  # unknown to the local limiter, which then promises without counting
        return await self._local.reserve(visit, work)

    def leave(self, visit: str, *, device_s: float, work: float) -> None:
        """See :class:`serve_app.access.limits.Limits`."""
        if visit in self._local_visits:
            self._local_visits.remove(visit)
            self._local.leave(visit, device_s=device_s, work=work)
        elif self._actor is not None:
            self._actor.leave.remote(self._named(visit), device_s, work)

    def keep(self) -> None:
        """Say that this replica is there."""
        if self._actor is not None:
            self._actor.keep.remote()

    def _named(self, visit: str) -> str:
        return f"{self._source}/{visit}"

    async def _ask(self, method: str, *arguments: object) -> Any:
        if self._clock() < self._paused_until_s:
            raise _LostError
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._actor is None:
                    self._actor = await self._find()
                return await getattr(self._actor, method).remote(*arguments)
        except (TimeoutError, RayError, ConnectionError) as error:
            logger.warning("the shared limits can't be reached; this replica counts alone: %s", type(error).__name__)
            is_late = isinstance(error, TimeoutError)
            if not is_late:  # one that is late is still there: who entered there leaves there
                self._actor = None
            self._paused_until_s = self._clock() + PAUSE_S
            self._on_lost()
            raise _LostError(is_late=is_late) from error


class _LostError(Exception):
    """The actor can't be asked now; ``is_late`` where it was asked, and did not answer in time."""

    def __init__(self, *, is_late: bool = False) -> None:
        super().__init__()
        self.is_late = is_late


def shared_limits(app_name: str, *, max_visit_s: float, on_lost: Callable[[], None]) -> SharedLimits:
    """The limits of one application, whose actor starts now where it does not run: the first request need not wait."""
    find = functools.partial(find_actor, app_name, max_visit_s=max_visit_s)
    find()
    source = ray.get_runtime_context().get_actor_id() or ""
    return SharedLimits(find, max_visit_s=max_visit_s, source=source, on_lost=on_lost)


def find_actor(app_name: str, *, max_visit_s: float) -> Any:
    """The application's limiter. See :func:`serve_app.head_actor.head_actor`."""
    return head_actor(LimiterActor, f"limits-{VERSION}-{app_name}", max_visit_s)
