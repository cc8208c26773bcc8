"""Who comes: the same crowds for every policy, measured or simulated."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from benchmarks import traces
from benchmarks.simulation.fleet import alone_seconds
from benchmarks.traces import Arrival, ArrivalProcess, Mix
from engine.cost_model import CostModel, LinearCost
from engine.profile import ModelProfile

NUM_SAMPLED = 4000
"""Requests that the mean is taken over."""

SPARE = 4.0
"""A trace is made this many times as long as it is on average, and cut to the number of requests that is wanted."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Crowd:
    """One trace and how it was made. ``load`` is the work that arrives in a second, in seconds of the device."""

    arrivals: ArrivalProcess
    load: float
    trace: tuple[Arrival, ...]

    @property
    def name(self) -> str:
        return f"{self.arrivals} {self.load:.0%}"

    @property
    def num_requests(self) -> int:
        """All of them."""
        return len(self.trace)


def slowed(cost: CostModel, factor: float) -> CostModel:
    """A device that takes so many times as long for everything."""

    def times(part: LinearCost) -> LinearCost:
        return dataclasses.replace(part, corrections=tuple(factor * value for value in part.corrections))

    return CostModel(step=times(cost.step), text=times(cost.text), vision=times(cost.vision), decode=times(cost.decode))


def mean_alone_seconds(profile: ModelProfile, cost: CostModel, mix: Mix, *, seed: int) -> float:
    """What a request of a mix takes on an idle device, on average."""
    some = traces.generate(arrivals="poisson", rate_per_s=1.0, duration_s=float(NUM_SAMPLED), seed=seed + 99, mix=mix)
    return statistics.fmean(alone_seconds(arrival, profile, cost) for arrival in some)


def crowds(
    profile: ModelProfile,
    cost: CostModel,
    mix: Mix,
    *,
    loads: Sequence[float],
    requests: int,
    num_devices: int,
    seed: int,
) -> Iterator[Crowd]:
    """Both kinds of arrivals at every load, so many requests each."""
    mean_s = mean_alone_seconds(profile, cost, mix, seed=seed)
    for arrivals in get_args(ArrivalProcess):
        for load in loads:
            rate = load * num_devices / mean_s
            duration_s = SPARE * requests / rate
            trace = traces.generate(arrivals=arrivals, rate_per_s=rate, duration_s=duration_s, seed=seed, mix=mix)
            trace = trace[:requests]
            # Few bursts come in very different numbers: what is called 80 % shall be that.
            work_s = sum(alone_seconds(arrival, profile, cost) for arrival in trace)
            stretch = work_s / (load * num_devices) / trace[-1].at_s
            stretched = tuple(dataclasses.replace(arrival, at_s=stretch * arrival.at_s) for arrival in trace)
            yield Crowd(arrivals=arrivals, load=load, trace=stretched)


def mix_as_json(mix: Mix) -> dict[str, Any]:
    """What is asked for, as a result holds it."""
    return {"sides_px": [*mix.sides_px.items()], "num_steps": [*mix.num_steps.items()], "cfg": [*mix.cfg.items()]}


def mix_from_json(values: dict[str, Any]) -> Mix:
    """The inverse of :func:`mix_as_json`."""
    return Mix(sides_px=dict(values["sides_px"]), num_steps=dict(values["num_steps"]), cfg=dict(values["cfg"]))
