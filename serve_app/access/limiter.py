"""All limits of all clients, in one process and on one clock. Knows no HTTP and no Ray.

A request *enters*, may *reserve* device seconds, and *leaves*. One that never leaves, because the process that asked
for it died, is forgotten after the longest time that a request may take.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Final, Literal

from serve_app.access.quota import DeviceQuota
from serve_app.access.rate import TokenBucket
from serve_app.access.settings import ClientLimits

LimitName = Literal["rate", "quota", "concurrency"]

MAX_CLIENTS: Final = 20_000
"""Addresses remembered; about a kilobyte each. Beyond it those longest unheard of are forgotten."""

_MIN_WAIT_S: Final = 0.1
_MEMORY: Final = 0.9
"""Weight of the past in running means: about ten requests count."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Which limit, when to try again, and a sentence for the caller. ``retry_after_s`` is infinite where never."""

    limit: LimitName
    retry_after_s: float
    message: str


@dataclasses.dataclass(kw_only=True, slots=True)
class _Visit:
    client: str
    limits: ClientLimits
    entered_s: float


@dataclasses.dataclass(kw_only=True, slots=True)
class _Client:
    bucket: TokenBucket = dataclasses.field(default_factory=TokenBucket)
    quota: DeviceQuota = dataclasses.field(default_factory=DeviceQuota)
    visits: dict[str, _Visit] = dataclasses.field(default_factory=dict)
    window_s: float = 0.0

    def is_blank(self, now_s: float) -> bool:
        """Whether forgetting it changes nothing."""
        return not self.visits and self.bucket.full_s <= now_s and not self.quota.spent_s(now_s, window_s=self.window_s)


class Limiter:
    """Says who may go on.

    Args:
        max_visit_s: how long a request can take at most.
        clock: seconds, monotonic.
    """

    def __init__(
        self, *, max_visit_s: float, max_clients: int = MAX_CLIENTS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_visit_s = max_visit_s
        self._max_clients = max_clients
        self._clock = clock
        self._clients: dict[str, _Client] = {}  # in the order in which they were last heard of
        self._visits: dict[str, _Visit] = {}  # in the order in which they entered
        self._mean_visit_s = 1.0
        self._device_s_per_work: float | None = None

    def enter(self, visit: str, client: str, limits: ClientLimits) -> Refusal | None:
        """Let a request in, or say why not. A refused request counts for nothing."""
        now_s = self._clock()
        self._forget(now_s)
        state = self._clients.pop(client, None) or _Client()
        self._clients[client] = state
        state.window_s = limits.window_s
        refusal = self._refusal(state, limits, now_s)
        if refusal is None:
            if limits.requests_per_minute is not None:
                state.bucket.take(now_s, per_minute=limits.requests_per_minute)
            state.visits[visit] = self._visits[visit] = _Visit(client=client, limits=limits, entered_s=now_s)
        return refusal

    def reserve(self, visit: str, work: float) -> Refusal | float:
        """Promise a request the device seconds that its work will take, as far as is known.

        Args:
            work: any measure that device seconds grow with.

        Returns:
            The seconds promised; 0 as long as no finished work has shown what it takes.
        """
        now_s = self._clock()
        entered = self._visits.get(visit)
        wanted_s = work * (self._device_s_per_work or 0.0)
        if entered is None or entered.limits.device_s is None:
            return wanted_s
        limits, quota = entered.limits, self._clients[entered.client].quota
        wait_s = quota.wait_s(wanted_s, now_s, device_s=entered.limits.device_s, window_s=limits.window_s)
        if wait_s > 0.0:
            return _over_quota(limits, wait_s, wanted_s)
        quota.reserve(visit, wanted_s)
        return wanted_s

    def leave(self, visit: str, *, device_s: float = 0.0, work: float = 0.0) -> None:
        """A request ended.

        Args:
            device_s: what it is charged.
            work: how much of its work was finished by that; nothing is learned from a charge without work.
        """
        now_s = self._clock()
        entered = self._end(visit, device_s, now_s)
        if entered is not None:
            self._mean_visit_s += (1.0 - _MEMORY) * (now_s - entered.entered_s - self._mean_visit_s)
        if work > 0.0 and device_s > 0.0:
            seen, known = device_s / work, self._device_s_per_work
            self._device_s_per_work = seen if known is None else known + (1.0 - _MEMORY) * (seen - known)

    def at_work(self, client: str) -> tuple[str, ...]:
        """Requests of a client that have entered and not left."""
        state = self._clients.get(client)
        return () if state is None else tuple(state.visits)

    def client_of(self, visit: str) -> str:
        """Whose request it is; empty where it is not at work."""
        entered = self._visits.get(visit)
        return "" if entered is None else entered.client

    def abandon(self, visit: str) -> None:
        """A request will never leave; nothing is charged, and nothing learned from it."""
        self._end(visit, 0.0, self._clock())

    def is_blank(self) -> bool:
        """Whether nothing is remembered of anybody: a new limiter would say the same."""
        now_s = self._clock()
        self._forget(now_s)
        return all(client.is_blank(now_s) for client in self._clients.values())

    def _refusal(self, state: _Client, limits: ClientLimits, now_s: float) -> Refusal | None:
        if limits.max_concurrent is not None and len(state.visits) >= limits.max_concurrent:
            oldest = next(iter(state.visits.values()))
            wait_s = max(1.0, oldest.entered_s + self._mean_visit_s - now_s)
            return Refusal(
                limit="concurrency",
                retry_after_s=wait_s,
                message=f"you have {len(state.visits)} requests at work, as many as you may; wait for one of them",
            )
        if limits.device_s is not None:
            wait_s = state.quota.wait_s(0.0, now_s, device_s=limits.device_s, window_s=limits.window_s)
            if wait_s > 0.0:
                return _over_quota(limits, wait_s, 0.0)
        if limits.requests_per_minute is not None:
            wait_s = state.bucket.wait_s(now_s, per_minute=limits.requests_per_minute, burst=limits.burst)
            if wait_s > 0.0:
                return Refusal(
                    limit="rate",
                    retry_after_s=max(wait_s, _MIN_WAIT_S),
                    message=f"you may send {limits.requests_per_minute:g} requests a minute; "
                    f"try again in {math.ceil(wait_s)} s",
                )
        return None

    def _end(self, visit: str, device_s: float, now_s: float) -> _Visit | None:
        entered = self._visits.pop(visit, None)
        if entered is not None:
            state = self._clients[entered.client]
            del state.visits[visit]
            charged_s = 0.0 if entered.limits.device_s is None else device_s
            state.quota.settle(visit, charged_s, now_s, window_s=entered.limits.window_s)
        return entered

    def _forget(self, now_s: float) -> None:
        """Requests that can't be there any more, and the clients longest unheard of where there are too many."""
        while self._visits:
            visit, oldest = next(iter(self._visits.items()))
            if oldest.entered_s + self._max_visit_s > now_s:
                break
            self._end(visit, 0.0, now_s)
        if len(self._clients) > self._max_clients:
            idle = (name for name, client in self._clients.items() if not client.visits)
            for name in [name for name, _ in zip(idle, range(self._max_clients // 10), strict=False)]:
                del self._clients[name]


def _over_quota(limits: ClientLimits, wait_s: float, wanted_s: float) -> Refusal:
    quota = f"your quota is {limits.device_s:g} s of a device in {limits.window_s:g} s"
    if math.isinf(wait_s):
        message = f"this picture takes about {wanted_s:.1f} s of a device, and {quota}; ask for fewer steps or pixels"
    else:
        message = f"{quota}, and it is used up for now; try again in {math.ceil(wait_s)} s"
    return Refusal(limit="quota", retry_after_s=max(wait_s, _MIN_WAIT_S), message=message)
