"""A fleet of replicas as arithmetic: work arrives, replicas do one second of it each second, new ones take a while."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
from collections.abc import Callable, Iterable

from serve_app.scaling.decision import Decision, Snapshot

START = datetime.datetime(2026, 3, 2, 12, 0, tzinfo=datetime.UTC)  # a Monday


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """A request that comes at ``at_s`` with so much work."""

    at_s: float
    work_s: float


@dataclasses.dataclass(kw_only=True, slots=True)
class Moment:
    """What was seen and decided at one tick."""

    at_s: float
    num_running: int
    num_wanted: int
    owed_s: float
    decision: Decision | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A whole run: every tick; and of every request that was finished, the time from arrival to end, and its work."""

    moments: tuple[Moment, ...]
    latencies_s: tuple[tuple[float, float], ...]

    @property
    def replica_s(self) -> float:
        """What was paid for: seconds of replicas, starting ones included."""
        tick_s = self.moments[1].at_s - self.moments[0].at_s
        return sum(max(moment.num_running, moment.num_wanted) for moment in self.moments) * tick_s

    def num_changes(self, *, after_s: float = 0.0) -> int:
        """How often another number was wanted than the moment before."""
        wanted = [moment.num_wanted for moment in self.moments if moment.at_s >= after_s]
        return sum(one != other for one, other in itertools.pairwise(wanted))


def simulate(
    arrivals: Iterable[Arrival],
    decide: Callable[[Snapshot], Decision],
    *,
    until_s: float,
    cold_start_s: float,
    max_replicas: int = 100,
    min_replicas: int = 0,
    num_at_start: int = 1,
    tick_s: float = 0.5,
) -> Run:
    """Every replica takes the oldest waiting request and works on it alone until it is done."""
    coming = sorted(arrivals, key=lambda arrival: arrival.at_s)
    waiting: list[tuple[Arrival, float]] = []  # with the work that is left
    working: list[tuple[Arrival, float]] = []
    ready_at_s = [0.0] * num_at_start
    latencies_s: list[tuple[float, float]] = []
    moments = []
    num_target = num_at_start
    for tick in range(math.ceil(until_s / tick_s)):
        now_s = tick * tick_s
        while coming and coming[0].at_s <= now_s:
            arrival = coming.pop(0)
            waiting.append((arrival, arrival.work_s))
        num_running = sum(ready_s <= now_s for ready_s in ready_at_s)
        busy_s = 0.0
        for worker in range(num_running):
            left_s = tick_s
            while left_s > 0 and (worker < len(working) or waiting):
                if worker >= len(working):
                    working.append(waiting.pop(0))
                arrival, work_s = working[worker]
                done_s = min(left_s, work_s)
                left_s, busy_s = left_s - done_s, busy_s + done_s
                if done_s < work_s:
                    working[worker] = (arrival, work_s - done_s)
                else:
                    del working[worker]
                    latencies_s.append((now_s + tick_s - left_s - arrival.at_s, arrival.work_s))
                    if waiting:
                        working.insert(worker, waiting.pop(0))
                    else:
                        break
        here = waiting + working
        snapshot = Snapshot(
            now_s=now_s,
            wall=START + datetime.timedelta(seconds=now_s),
            num_running=num_running,
            num_target=num_target,
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            owed_s=sum(work_s for _, work_s in here),
            busy=busy_s / tick_s,
            num_requests=float(len(here)),
        )
        decision = decide(snapshot)
        num_target = decision.num_replicas
        while len(ready_at_s) < num_target:
            ready_at_s.append(now_s + cold_start_s)
        num_kept = max(num_target, len(working))  # a replica that is let go finishes what it has
        ready_at_s = sorted(ready_at_s)[: max(num_target, min(num_kept, len(ready_at_s)))]
        moments.append(
            Moment(
                at_s=now_s,
                num_running=num_running,
                num_wanted=num_target,
                owed_s=snapshot.owed_s,
                decision=decision,
            )
        )
    return Run(moments=tuple(moments), latencies_s=tuple(latencies_s))
