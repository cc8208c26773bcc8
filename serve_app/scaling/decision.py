"""How many replicas are wanted, and why. Standard library only: a snapshot goes in, a number and a reason come out.

Work is counted in seconds that one replica would need for it, never in requests: a preview and a large picture differ
four-hundredfold. The number is the largest of a few *wants*, each with its reason:

``work``
    With ``L`` the time a new replica takes to start: replicas ordered now help from ``L`` on, and after another ``L``
    nobody shall wait longer than ``may_owe_s``. Work that is owed, plus what arrives until then, minus what the present
    replicas do while the new ones start, has to fit into ``n`` replicas::

        owed + arriving * 2L - done_by_present_replicas(L) <= n * (L + may_owe_s)

    Never more replicas than requests: what runs already can't be split. For ``L = 0`` it is ``owed / may_owe_s``.
``busy``
    So many that arriving work fills them to ``max_utilisation`` at most: a fleet without room to spare queues without
    end at the first burst (``benchmarks/scaling.py`` shows what room costs and gives). More of them than requests are
    here are kept, but not started.
``held``
    What was wanted within the last ``hold_s``: up at once, down slowly, and so no flapping. Two steps down with a step
    up between them are never closer than that.
``awake``
    One, until nothing at all was asked for during ``idle_to_zero_s``.
``warm``, ``minimum``
    Floors: by time of day, and always.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import math
from typing import Final, Literal

from serve_app.scaling.rules import ScalingRules

Cause = Literal["work", "busy", "held", "awake", "warm", "minimum", "maximum"]
"""Why a number was chosen; ``maximum``: more were wanted than are allowed."""

_SAMPLES_PER_WINDOW: Final = 60
_SLACK: Final = 1e-9
"""Sums of floats that should meet a whole number must not order another replica."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A stage at one moment.

    Attributes:
        now_s: a clock that only goes forward.
        wall: the time of day, with a time zone.
        num_running: replicas that serve.
        num_target: replicas that were last asked for; those above ``num_running`` are starting.
        min_replicas, max_replicas: bounds of the answer.
        owed_s: work that is here, waiting and running, placed or not, in seconds of a replica.
        busy: replicas' worth of work being done: 2.5 where two are busy all the time and one half of it.
        num_requests: requests that are here, waiting and running.
    """

    now_s: float
    wall: datetime.datetime
    num_running: int
    num_target: int
    min_replicas: int
    max_replicas: int
    owed_s: float
    busy: float
    num_requests: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """A number of replicas and the reason for it.

    Attributes:
        num_replicas: between the snapshot's bounds.
        cause: which want decided.
        reason: a sentence for the log.
        owed_s: as in the snapshot.
        arriving: seconds of work that come in each second.
    """

    num_replicas: int
    cause: Cause
    reason: str
    owed_s: float
    arriving: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Want:
    num: int
    cause: Cause
    reason: str


class Scaler:
    """Decides for one stage. Remembers what was wanted lately, what was ordered and when there was last work."""

    def __init__(self, rules: ScalingRules) -> None:
        self.rules = rules
        self._samples: collections.deque[Snapshot] = collections.deque()
        self._wanted: collections.deque[tuple[float, int]] = collections.deque()  # numbers fall towards the right
        self._ordered_s: collections.deque[float] = collections.deque()  # of replicas that are still starting
        self._last_work_s = -math.inf

    def decide(self, snapshot: Snapshot) -> Decision:
        """The number of replicas for a moment. Moments come in order of time."""
        if not self._samples and snapshot.num_target:
            # A successor (after a crash, or new rules) knows nothing of the past: what runs has its reasons.
            self._remember(snapshot.now_s, snapshot.num_target)
            self._last_work_s = snapshot.now_s
        self._sample(snapshot)
        arriving = self._arriving(snapshot)
        work = self._work(snapshot, arriving)
        busy = self._busy(snapshot, arriving)
        self._remember(snapshot.now_s, max(work.num, busy.num))
        awake = self._awake(snapshot)
        minimum = _Want(snapshot.min_replicas, "minimum", "min_replicas")
        wants = (work, busy, self._held(snapshot.now_s), awake, self._warm(snapshot), minimum)
        # The first of the largest counts, so the nearest reasons come first. Where none is wanted, sleep is the reason.
        chosen = max((want for want in wants if want.num), key=lambda want: want.num, default=awake)
        if chosen.num > snapshot.max_replicas:
            reason = f"max_replicas; {chosen.num} are wanted: {chosen.reason}"
            chosen = _Want(snapshot.max_replicas, "maximum", reason)
        self._order(snapshot, chosen.num)
        return Decision(
            num_replicas=chosen.num,
            cause=chosen.cause,
            reason=chosen.reason,
            owed_s=snapshot.owed_s,
            arriving=arriving,
        )

    # -- wants -----------------------------------------------------------------------------------------------------

    def _work(self, now: Snapshot, arriving: float) -> _Want:
        start_s, owe_s = self.rules.cold_start_s, self.rules.may_owe_s
        left_s = now.owed_s + arriving * 2.0 * start_s - self._done_while_starting_s(now)
        num = min(_ceil(left_s / (start_s + owe_s)), _ceil(now.num_requests))
        return _Want(num, "work", f"{now.owed_s:.1f} s of work are owed and {arriving:.2f} s come in each second")

    def _busy(self, now: Snapshot, arriving: float) -> _Want:
        num = min(_ceil(arriving / self.rules.max_utilisation), max(now.num_target, _ceil(now.num_requests)))
        return _Want(num, "busy", f"{arriving:.2f} s of work come in each second")

    def _held(self, now_s: float) -> _Want:
        since_s, num = self._wanted[0]
        return _Want(num, "held", f"wanted {now_s - since_s:.0f} s ago, kept for {self.rules.hold_s:g} s")

    def _awake(self, now: Snapshot) -> _Want:
        idle_s = now.now_s - self._last_work_s
        if idle_s >= self.rules.idle_to_zero_s:
            return _Want(0, "awake", f"nothing was asked for during {self.rules.idle_to_zero_s:g} s")
        return _Want(1, "awake", f"the last request was {idle_s:.0f} s ago")

    def _warm(self, now: Snapshot) -> _Want:
        local = now.wall.astimezone(self.rules.time_zone)
        floors = [hours for hours in self.rules.warm_hours if hours.holds_at(local)]
        if not floors:
            return _Want(0, "warm", "no warm hours")
        hours = max(floors, key=lambda hours: hours.num_replicas)
        return _Want(hours.num_replicas, "warm", f"warm from {hours.start:%H:%M} to {hours.end:%H:%M}")

    # -- memory ----------------------------------------------------------------------------------------------------

    def _sample(self, now: Snapshot) -> None:
        window_s = self.rules.rate_window_s
        if not self._samples or now.now_s - self._samples[-1].now_s >= window_s / _SAMPLES_PER_WINDOW:
            self._samples.append(now)
        while now.now_s - self._samples[0].now_s > window_s:
            self._samples.popleft()
        if now.owed_s > 0.0 or now.num_requests > 0.0:
            self._last_work_s = now.now_s

    def _arriving(self, now: Snapshot) -> float:
        """What was done plus what piled up. Before the oldest sample nothing is taken to have piled up."""
        oldest = self._samples[0] if self._samples else now
        busy = sum(sample.busy for sample in self._samples) / max(1, len(self._samples))
        return max(0.0, busy + (now.owed_s - oldest.owed_s) / self.rules.rate_window_s)

    def _done_while_starting_s(self, now: Snapshot) -> float:
        """Work that replicas which run or start already do until one ordered now would be ready."""
        start_s = self.rules.cold_start_s
        started = sum(min(start_s, now.now_s - ordered_s) for ordered_s in self._starting_since_s(now))
        return now.num_running * start_s + started

    def _starting_since_s(self, now: Snapshot) -> collections.deque[float]:
        num_starting = max(0, now.num_target - now.num_running)
        while len(self._ordered_s) > num_starting:
            self._ordered_s.popleft()
        while len(self._ordered_s) < num_starting:  # one that died and is replaced, or ordered by someone else
            self._ordered_s.append(now.now_s)
        return self._ordered_s

    def _order(self, now: Snapshot, num_replicas: int) -> None:
        self._ordered_s.extend([now.now_s] * max(0, num_replicas - now.num_target))

    def _remember(self, now_s: float, num: int) -> None:
        """Keep a window's maximum: whatever is neither younger nor larger than ``num`` can't be it any more."""
        while self._wanted and self._wanted[-1][1] <= num:
            self._wanted.pop()
        self._wanted.append((now_s, num))
        while now_s - self._wanted[0][0] > self.rules.hold_s:
            self._wanted.popleft()


def _ceil(value: float) -> int:
    return max(0, math.ceil(value - _SLACK))
