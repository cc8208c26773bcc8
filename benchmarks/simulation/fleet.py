"""A fleet of replicas as a discrete-event simulation.

What decides is the real code: every replica has the engine's ledger and scheduling policy, and a fleet that scales has
the application's own scaler. Only time and devices are made up: a step takes what the cost model says, times a scatter.
Requests are routed as Ray Serve does: of two replicas drawn at random, to the one with fewer requests. Who meets two
full ones, or a full engine, is refused; who has waited too long goes away.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Protocol

from benchmarks.traces import Arrival
from engine.cost_meter import CostMeter
from engine.cost_model import CostModel, RequestWork
from engine.errors import EngineBusyError
from engine.ledger import Entry, Ledger
from engine.profile import DrawnSize, ModelProfile
from engine.request import ImageRequest
from engine.scheduler import PolicyName, StepBudget, StepSeconds, make_policy

NO_LIMIT = 10**9
"""Nobody is refused unless a simulation asks for it: who waits too long is late, and counted so."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one request of a trace.

    Attributes:
        arrival: as in the trace.
        alone_s: what it takes on an idle device.
        latency_s: from arrival to picture; None where it was refused, or went away.
    """

    arrival: Arrival
    alone_s: float
    latency_s: float | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """A fleet at one time.

    Attributes:
        at_s: since the start.
        num_serving, num_starting, num_draining: replicas.
        owed_s: work that is here, in seconds of a replica.
    """

    at_s: float
    num_serving: int
    num_starting: int
    num_draining: int
    owed_s: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A whole simulation.

    Attributes:
        outcomes: in the order of arrival.
        moments: one every tick.
        replica_s: seconds of replicas that are paid for, from order to release.
        busy_s: of those, seconds that a device worked.
        num_cold_starts: replicas that were started after the beginning.
        ended_s: when the last picture was done.
    """

    outcomes: tuple[Outcome, ...]
    moments: tuple[Moment, ...]
    replica_s: float
    busy_s: float
    num_cold_starts: int
    ended_s: float


class Scaling(Protocol):
    """Decides how many replicas there are."""

    def __call__(self, fleet: Fleet) -> int:
        """The number that is wanted now."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """What a fleet is made of.

    Attributes:
        profile: which sizes are drawn at what size.
        cost: seconds of everything.
        policy, budget: of every replica.
        max_requests: that a replica may have, waiting and running (Serve's ``max_ongoing_requests``).
        max_queued_device_s: work that an engine may have.
        time_limit_s: after which a caller goes away (the application's ``request_timeout_s``).
        num_replicas: at the start, and for good where nothing scales.
        cold_start_s: from the order to the first step.
        tick_s: how often scaling is asked.
        scatter: standard deviation of a step's seconds around the prediction, as a share.
        seed: of the scatter and the routing.
    """

    profile: ModelProfile
    cost: CostModel
    policy: PolicyName
    budget: StepBudget
    max_requests: int = NO_LIMIT
    max_queued_device_s: float = math.inf
    time_limit_s: float = math.inf
    num_replicas: int = 1
    cold_start_s: float = 0.0
    tick_s: float = 5.0
    scatter: float = 0.03
    seed: int = 0


class KnownCost(CostMeter):
    """The simulated device is what the model says, but for the scatter: nothing is to be learned from its steps."""

    def observe_step(self, row_tokens: Sequence[int], measured_s: float) -> None:
        """Nothing new."""


class Replica:
    """One device: a ledger, and the time at which its present step ends."""

    def __init__(
        self,
        settings: FleetSettings,
        step_seconds: StepSeconds,
        clock: Callable[[], float],
        *,
        ordered_s: float,
        ready_s: float,
    ) -> None:
        self.ordered_s, self.ready_s = ordered_s, ready_s
        self.released_s: float | None = None
        self.is_draining = False
        self.is_stepping = False
        self.num_requests = 0
        self.busy_s = 0.0
        self.ledger: Ledger[None] = Ledger(
            policy=make_policy(settings.policy, step_seconds),
            budget=settings.budget,
            meter=KnownCost(settings.cost),
            max_waiting=NO_LIMIT,
            max_queued_device_s=settings.max_queued_device_s,
            clock=clock,
        )

    @property
    def owed_s(self) -> float:
        """Work that is here, in seconds."""
        return self.ledger.stats().queued_device_s


class Fleet:
    """Replays a trace."""

    def __init__(self, settings: FleetSettings, scaling: Scaling | None = None) -> None:
        self.settings, self._scaling = settings, scaling
        self.now_s = 0.0
        self.replicas: list[Replica] = []
        self.unplaced: list[int] = []  # requests that no replica is there for
        self.busy_since_tick_s = 0.0
        self.num_target = settings.num_replicas
        self._rng = random.Random(settings.seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._trace: Sequence[Arrival] = ()
        self._step_seconds = functools.cache(settings.cost.step_seconds)  # of few shapes, millions of times
        self._placed: dict[int, Replica] = {}
        self._done_s: dict[int, float] = {}
        self._moments: list[Moment] = []
        self._num_left = 0

    def run(self, trace: Sequence[Arrival]) -> Run:
        """All of a trace, until its last picture is done."""
        self._trace = trace
        self._num_left = len(trace)
        for _ in range(self.settings.num_replicas):
            self._start_replica(ready_s=0.0)
        for number, arrival in enumerate(trace):
            self._at(arrival.at_s, functools.partial(self._arrive, number))
            if self.settings.time_limit_s < math.inf:
                self._at(arrival.at_s + self.settings.time_limit_s, functools.partial(self._go_away, number))
        self._at(0.0, self._tick)
        while self._num_left:
            self.now_s, _, event = heapq.heappop(self._events)
            event()
        ended_s = max([self.now_s, *self._done_s.values()])
        return Run(
            outcomes=tuple(self._outcome(number) for number in range(len(trace))),
            moments=tuple(self._moments),
            replica_s=sum((r.released_s or ended_s) - r.ordered_s for r in self.replicas),
            busy_s=sum(replica.busy_s for replica in self.replicas),
            num_cold_starts=len(self.replicas) - self.settings.num_replicas,
            ended_s=ended_s,
        )

    @property
    def serving(self) -> list[Replica]:
        """Replicas that take requests."""
        return [r for r in self.replicas if r.ready_s <= self.now_s and not r.is_draining]

    @property
    def num_requests(self) -> int:
        """Requests that are here, waiting and running."""
        return len(self.unplaced) + sum(r.num_requests for r in self.replicas if r.released_s is None)

    @property
    def owed_s(self) -> float:
        """Work that is here, placed or not, in seconds of a replica."""
        placed_s = sum(replica.owed_s for replica in self.replicas if replica.num_requests)
        return placed_s + sum(self._alone_s(self._trace[number]) for number in self.unplaced)

    # -- events ----------------------------------------------------------------------------------------------------

    def _at(self, when_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), event))

    def _arrive(self, number: int) -> None:
        serving = self.serving
        if not serving:
            self.unplaced.append(number)
            return
        pair = self._rng.sample(serving, min(2, len(serving)))
        replica = min(pair, key=lambda replica: replica.num_requests)
        if replica.num_requests < self.settings.max_requests:
            self._submit(number, replica)
        else:
            self._num_left -= 1

    def _submit(self, number: int, replica: Replica) -> None:
        arrival = self._trace[number]
        size = self.settings.profile.size.drawn_size(arrival.width_px, arrival.height_px)
        request = ImageRequest(request_id=str(number), prompt="simulated", num_steps=arrival.num_steps, cfg=arrival.cfg)
        try:
            replica.ledger.submit(request, size, self._work(arrival, size))
        except EngineBusyError:
            self._num_left -= 1
            return
        self._placed[number] = replica
        replica.num_requests += 1
        if not replica.is_stepping:
            self._begin_step(replica)

    def _go_away(self, number: int) -> None:
        if number in self.unplaced:
            self.unplaced.remove(number)
            self._num_left -= 1
        elif number in self._placed:  # and not done
            self._placed[number].ledger.cancel(str(number))

    def _begin_step(self, replica: Replica) -> None:
        gone, entries = replica.ledger.begin_step()
        for one in gone:
            self._leave(int(one.request_id))
        replica.is_stepping = bool(entries)
        if not entries:
            if replica.is_draining and not replica.num_requests:
                replica.released_s = self.now_s
            return
        cost = self.settings.cost
        encode_s = sum(
            cost.text_seconds(entry.work.num_prompts) + cost.vision_seconds(entry.work.num_references)
            for entry in entries
            if entry.num_steps_done == 0
        )
        row_tokens = tuple(num for entry in entries for num in entry.work.row_tokens)
        step_s = self._step_seconds(row_tokens) * math.exp(self._rng.gauss(0.0, self.settings.scatter))
        self._at(self.now_s + encode_s + step_s, lambda: self._end_step(replica, entries, encode_s, step_s))

    def _end_step(self, replica: Replica, entries: list[Entry[None]], encode_s: float, step_s: float) -> None:
        replica.ledger.step_done(entries, step_s)
        busy_s = encode_s + step_s
        for entry in entries:
            if entry.is_drawn:
                decode_s = self.settings.cost.decode_seconds(entry.work.num_pixels)
                busy_s += decode_s
                replica.ledger.finished(entry)
                number = int(entry.request.request_id)
                self._done_s[number] = self.now_s + busy_s - encode_s - step_s
                self._leave(number)
        replica.busy_s += busy_s
        self.busy_since_tick_s += busy_s
        rest_s = busy_s - encode_s - step_s
        if rest_s:
            self._at(self.now_s + rest_s, lambda: self._begin_step(replica))
        else:
            self._begin_step(replica)

    def _leave(self, number: int) -> None:
        self._placed.pop(number).num_requests -= 1
        self._num_left -= 1

    # -- scaling ---------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if self._scaling is not None:
            self.num_target = self._scaling(self)
            self._scale_to(self.num_target)
        self.busy_since_tick_s = 0.0
        present = [replica for replica in self.replicas if replica.released_s is None]
        self._moments.append(
            Moment(
                at_s=self.now_s,
                num_serving=len(self.serving),
                num_starting=sum(replica.ready_s > self.now_s for replica in present),
                num_draining=sum(replica.is_draining for replica in present),
                owed_s=self.owed_s,
            )
        )
        self._at(self.now_s + self.settings.tick_s, self._tick)

    def _scale_to(self, num_wanted: int) -> None:
        kept = [replica for replica in self.replicas if not replica.is_draining]
        for _ in range(num_wanted - len(kept)):
            self._start_replica(ready_s=self.now_s + self.settings.cold_start_s)
        # Those that have not started yet go first, then those with least to finish.
        spare = sorted(kept, key=lambda replica: (replica.ready_s <= self.now_s, replica.num_requests))
        for replica in spare[: max(0, len(kept) - num_wanted)]:
            replica.is_draining = True
            if not replica.num_requests:
                replica.released_s = self.now_s

    def _start_replica(self, *, ready_s: float) -> None:
        replica = Replica(self.settings, self._step_seconds, lambda: self.now_s, ordered_s=self.now_s, ready_s=ready_s)
        self.replicas.append(replica)
        self._at(ready_s, self._place)

    def _place(self) -> None:
        waiting, self.unplaced = self.unplaced, []
        for number in waiting:
            self._arrive(number)

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _work(self, arrival: Arrival, size: DrawnSize) -> RequestWork:
        return work_of(arrival, size, self.settings.profile)

    def _alone_s(self, arrival: Arrival) -> float:
        return alone_seconds(arrival, self.settings.profile, self.settings.cost)

    def _outcome(self, number: int) -> Outcome:
        arrival = self._trace[number]
        done_s = self._done_s.get(number)
        latency_s = None if done_s is None else done_s - arrival.at_s
        return Outcome(arrival=arrival, alone_s=self._alone_s(arrival), latency_s=latency_s)


def work_of(arrival: Arrival, size: DrawnSize, profile: ModelProfile) -> RequestWork:
    """A request of a trace as the cost model sees it: one new prompt, a reference that the cache has."""
    return RequestWork(
        num_rows=2 if arrival.cfg > 1.0 else 1,
        num_tokens_per_row=profile.t5.max_tokens + size.num_tokens,
        num_steps=arrival.num_steps,
        num_pixels=size.width_px * size.height_px,
    )


def alone_seconds(arrival: Arrival, profile: ModelProfile, cost: CostModel) -> float:
    """What a request takes on an idle device."""
    size = profile.size.drawn_size(arrival.width_px, arrival.height_px)
    return cost.request_seconds(work_of(arrival, size, profile))
