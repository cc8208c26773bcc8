"""What a crowd got from each policy, and how the policies compare."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.progress import tell
from benchmarks.scheduler.crowds import Crowd
from benchmarks.traces import Arrival
from engine.scheduler import PolicyName

POLICIES: tuple[PolicyName, ...] = ("first_come", "static_batches", "shortest_remaining")

SLO_FACTOR = 3.0
"""A picture is good when it is there within so many times what it takes on an idle device."""

Replay = Callable[[Crowd, PolicyName], tuple[dict[str, Any], list[float]]]
"""A crowd under a policy: its :func:`summary`, and the latency of every request."""


def under_every_policy(crowd: Crowd, replay: Replay) -> dict[str, Any]:
    """One crowd's results, told as they come."""
    runs: dict[PolicyName, tuple[dict[str, Any], Sequence[float]]] = {}
    for policy in POLICIES:
        runs[policy] = replay(crowd, policy)
        found = runs[policy][0]
        tell(
            f"{crowd.name:14} {policy:19} good {found['good_share']:6.1%}  p50 {found['latency_s']['p50']:8.2f} s  "
            f"p99 {found['latency_s']['p99']:8.2f} s  small p95 {found['small_latency_s']['p95']:7.2f} s  "
            f"busy {found['utilisation']:.0%}"
        )
    return {
        "arrivals": crowd.arrivals,
        "load": crowd.load,
        "policies": {policy: found for policy, (found, _) in runs.items()},
        **_compared(runs),
    }


def summary(
    trace: Sequence[Arrival],
    latencies_s: Sequence[float],
    alone_s: Sequence[float],
    *,
    ended_s: float,
    busy_s: float,
    num_devices: int = 1,
) -> dict[str, Any]:
    """What a run was like. The latency of a request counts from its scheduled arrival."""
    good = [latency <= SLO_FACTOR * alone for latency, alone in zip(latencies_s, alone_s, strict=True)]
    smallest = min(arrival.width_px for arrival in trace)
    small = [latency for latency, arrival in zip(latencies_s, trace, strict=True) if arrival.width_px == smallest]
    stretch = [latency / alone for latency, alone in zip(latencies_s, alone_s, strict=True)]

    def percentiles(values: Sequence[float]) -> dict[str, float]:
        return {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (50, 95, 99)}

    return {
        "num_requests": len(trace),
        "goodput_per_s": round(sum(good) / ended_s, 4),
        "good_share": round(statistics.fmean(good), 4),
        "latency_s": percentiles(latencies_s),
        "small_latency_s": percentiles(small),
        "times_alone": percentiles(stretch),
        "utilisation": round(busy_s / ended_s / num_devices, 3),
        "ended_s": round(ended_s, 2),
    }


def _compared(runs: dict[PolicyName, tuple[dict[str, Any], Sequence[float]]]) -> dict[str, Any]:
    """The default policy against what everybody has: one after another, and batches that nobody joins."""
    ours, our_latencies_s = runs["shortest_remaining"]
    result: dict[str, Any] = {}
    for name in ("first_come", "static_batches"):
        other, other_latencies_s = runs[name]
        worst = max(mine / its for mine, its in zip(our_latencies_s, other_latencies_s, strict=True))
        result[f"against_{name}"] = {
            "goodput_ratio": _ratio(ours["goodput_per_s"], other["goodput_per_s"]),
            "small_p95_ratio": _ratio(ours["small_latency_s"]["p95"], other["small_latency_s"]["p95"]),
            "p99_ratio": _ratio(ours["latency_s"]["p99"], other["latency_s"]["p99"]),
            "worst_request_ratio": round(worst, 2),
        }
    return result


def _ratio(mine: float, other: float) -> float | None:
    return round(mine / other, 3) if other else None


def ranking_agreement(measured: Sequence[dict[str, Any]], simulated: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether the simulation orders the policies by goodput as the measurement did, crowd by crowd.

    Two policies whose goodputs are within 5 % of each other in either are taken as equal.
    """
    by_crowd = {(crowd["arrivals"], crowd["load"]): crowd["policies"] for crowd in simulated}
    num_pairs = num_agreeing = 0
    for crowd in measured:
        twin = by_crowd.get((crowd["arrivals"], crowd["load"]))
        if twin is None:
            continue
        for i, one in enumerate(POLICIES):
            for other in POLICIES[i + 1 :]:
                order = _order(crowd["policies"], one, other)
                twins_order = _order(twin, one, other)
                num_pairs += 1
                num_agreeing += order == twins_order or 0 in (order, twins_order)
    return {"num_pairs": num_pairs, "num_agreeing": num_agreeing}


def _order(policies: dict[str, Any], one: str, other: str) -> int:
    a, b = policies[one]["goodput_per_s"], policies[other]["goodput_per_s"]
    return 0 if abs(a - b) <= 0.05 * max(a, b) else (1 if a > b else -1)
