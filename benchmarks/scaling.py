"""What autoscaling by work costs and gives, on fleets nobody can rent for a benchmark: one simulated day.

    python -m benchmarks.scaling simulate --full-size benchmarks/results/full_size_h200.json \
        --max-replicas 1,16,64,256 --out benchmarks/results/scaling.json
    python -m benchmarks.scaling plot --simulated benchmarks/results/scaling.json --out docs/images/scaling.png

The same day is served by a fixed fleet for the peak, by a fixed fleet for the mean, by counting requests (what Ray
Serve does unless told otherwise: requests over a target, up after 30 s, down after 10 minutes) and by work
(:mod:`serve_app.scaling.decision`, the code that runs in production). Replicas are the engine's own ledger and default
policy on simulated time (:mod:`benchmarks.simulation.fleet`). A day has a night, a morning, an evening peak and bursts,
and is shortened, all rates being kept, so that large fleets can be simulated; cold starts and delays are not shortened,
which makes scaling look worse than it is.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import traces
from benchmarks.scheduler.crowds import mean_alone_seconds
from benchmarks.scheduler.simulate import as_measured
from benchmarks.simulation.fleet import Fleet, FleetSettings, Moment, Run, Scaling, alone_seconds
from benchmarks.simulation.request_counting import RequestCounting
from benchmarks.traces import Arrival, Mix
from engine.cost_model import CostModel
from engine.profile import load_profile
from engine.scheduler import StepBudget
from serve_app.scaling.decision import Scaler, Snapshot
from serve_app.scaling.rules import ScalingRules

MONDAY = datetime.datetime(2026, 3, 2, tzinfo=datetime.UTC)

NIGHT = 0.04
"""Traffic at its lowest, as a share of the peak."""

TARGET_UTILISATION = 0.7
"""Of a fleet of the largest size, at the peak."""

COLD_START_S = 150.0
"""A node from a warm pool and the weights from its disk: 48 s were measured for the application alone
(docs/full-size.md), the rest is the node."""

NUM_POINTS = 400


def day_shape(share: float) -> float:
    """Traffic at a share 0 … 1 of the day, as a share of the peak: a night, a morning rise, an evening peak at 0.85."""
    morning = math.exp(-(((share - 0.45) / 0.14) ** 2)) * 0.7
    evening = math.exp(-(((share - 0.85) / 0.07) ** 2))
    return NIGHT + (1 - NIGHT) * min(1.0, morning + evening)


def day(*, peak_rate_per_s: float, duration_s: float, seed: int, mix: Mix) -> tuple[Arrival, ...]:
    """Bursts at the peak's rate, thinned to the shape of a day."""
    rng = random.Random(f"day {seed}")
    dense = traces.generate(arrivals="bursts", rate_per_s=peak_rate_per_s, duration_s=duration_s, seed=seed, mix=mix)
    return tuple(arrival for arrival in dense if rng.random() < day_shape(min(1.0, arrival.at_s / duration_s)))


class ByWork:
    """The production scaler."""

    def __init__(self, max_replicas: int, *, may_owe_s: float) -> None:
        self._max_replicas = max_replicas
        self._scaler = Scaler(
            ScalingRules(may_owe_s=may_owe_s, cold_start_s=COLD_START_S, hold_s=300.0, idle_to_zero_s=600.0)
        )

    def __call__(self, fleet: Fleet) -> int:
        """See :class:`benchmarks.simulation.fleet.Scaling`."""
        decision = self._scaler.decide(
            Snapshot(
                now_s=fleet.now_s,
                wall=MONDAY + datetime.timedelta(seconds=fleet.now_s),
                num_running=len(fleet.serving),
                num_target=fleet.num_target,
                min_replicas=0,
                max_replicas=self._max_replicas,
                owed_s=fleet.owed_s,
                busy=fleet.busy_since_tick_s / fleet.settings.tick_s,
                num_requests=float(fleet.num_requests),
            )
        )
        return decision.num_replicas


class ByRequests:
    """Ray Serve's own rule, at its own defaults."""

    def __init__(self, max_replicas: int) -> None:
        self._counting = RequestCounting(per_replica=2.0, max_replicas=max_replicas)

    def __call__(self, fleet: Fleet) -> int:
        """See :class:`benchmarks.simulation.fleet.Scaling`."""
        return self._counting.replicas(fleet.now_s, num_requests=float(fleet.num_requests), num_target=fleet.num_target)


def report(run: Run, *, usd_per_hour: float) -> dict[str, Any]:
    """What a day cost and how it was."""
    latencies_s = np.array([outcome.latency_s for outcome in run.outcomes], dtype=float)
    waits_s = latencies_s - np.array([outcome.alone_s for outcome in run.outcomes])
    slo = statistics.fmean(
        outcome.latency_s is not None and outcome.latency_s <= 3 * outcome.alone_s for outcome in run.outcomes
    )
    step = max(1, len(run.moments) // NUM_POINTS)
    return {
        "num_images": len(run.outcomes),
        "usd_per_image": round(run.replica_s / 3600 * usd_per_hour / len(run.outcomes), 6),
        "utilisation": round(run.busy_s / run.replica_s, 3),
        "within_3_times_alone": round(slo, 4),
        "beyond_alone_s": {f"p{p}": round(float(np.percentile(waits_s, p)), 2) for p in (50, 95, 99)},
        "num_cold_starts": run.num_cold_starts,
        "replica_hours": round(run.replica_s / 3600, 2),
        "moments": [_point(moment) for moment in run.moments[::step]],
    }


def _point(moment: Moment) -> list[float]:
    num_present = moment.num_serving + moment.num_starting + moment.num_draining
    return [round(moment.at_s), moment.num_serving, num_present, round(moment.owed_s, 1)]


def simulate(arguments: argparse.Namespace) -> None:
    """Every fleet size, every way."""
    basis = as_measured(json.loads(arguments.full_size.read_text()))
    profile, cost = load_profile(basis["profile"]), CostModel.from_dict(basis["cost_model"])
    budget = StepBudget(max_samples=basis["max_batch_samples"], max_tokens=basis["max_batch_tokens"])
    mix = Mix()
    mean_s = mean_alone_seconds(profile, cost, mix, seed=arguments.seed)
    fleets = []
    for max_replicas in arguments.max_replicas:
        peak = TARGET_UTILISATION * max_replicas / mean_s
        trace = day(peak_rate_per_s=peak, duration_s=arguments.hours * 3600, seed=arguments.seed, mix=mix)
        mean_load = sum(alone_seconds(arrival, profile, cost) for arrival in trace) / (arguments.hours * 3600)
        num_for_mean = max(1, math.ceil(mean_load / TARGET_UTILISATION))
        ways: dict[str, tuple[int, Scaling | None]] = {
            "fixed for the peak": (max_replicas, None),
            "fixed for the mean": (num_for_mean, None),
            "by requests": (0, ByRequests(max_replicas)),
            "by work": (0, ByWork(max_replicas, may_owe_s=2 * mean_s)),
        }
        found = {}
        for name, (num_at_start, scaling) in ways.items():
            settings = FleetSettings(
                profile=profile,
                cost=cost,
                policy="shortest_remaining",
                budget=budget,
                num_replicas=num_at_start,
                cold_start_s=COLD_START_S,
                seed=arguments.seed,
            )
            found[name] = report(Fleet(settings, scaling).run(trace), usd_per_hour=arguments.usd_per_hour)
            shown = {key: value for key, value in found[name].items() if key != "moments"}
            print(max_replicas, name, json.dumps(shown), flush=True)
        fleets.append({"max_replicas": max_replicas, "mean_alone_s": round(mean_s, 3), "ways": found})
    result = {
        "command": " ".join(["python -m benchmarks.scaling", *sys.argv[1:]]),
        "basis": str(arguments.full_size),
        "usd_per_hour": arguments.usd_per_hour,
        "cold_start_s": COLD_START_S,
        "hours": arguments.hours,
        "fleets": fleets,
    }
    arguments.out.write_text(json.dumps(result) + "\n")


COLOURS = {
    "fixed for the peak": "#8a8a8a",
    "fixed for the mean": "#c9c2a5",
    "by requests": "#d59b5b",
    "by work": "#39678c",
}


def plot(arguments: argparse.Namespace) -> None:
    """Replicas over the largest day; cost against what callers got, for every fleet."""
    from matplotlib.figure import Figure

    result = json.loads(arguments.simulated.read_text())
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    over_day, cost_axis, wait_axis = figure.subplot_mosaic([["day", "day"], ["cost", "wait"]]).values()
    largest = result["fleets"][-1]
    for name, found in largest["ways"].items():
        hours = [point[0] / 3600 for point in found["moments"]]
        over_day.plot(hours, [point[2] for point in found["moments"]], color=COLOURS[name], label=name)
    over_day.set_title(f"replicas paid for, fleet of at most {largest['max_replicas']}", fontsize=10)
    over_day.set_xlabel(f"hours of a day shortened to {result['hours']:g}")
    over_day.legend(frameon=False, fontsize=8)
    sizes = [str(fleet["max_replicas"]) for fleet in result["fleets"]]
    for number, name in enumerate(COLOURS):
        places = [index + 0.2 * (number - 1.5) for index in range(len(sizes))]
        ways = [fleet["ways"][name] for fleet in result["fleets"]]
        cost_axis.bar(places, [1000 * way["usd_per_image"] for way in ways], 0.2, color=COLOURS[name])
        wait_axis.bar(places, [100 * way["within_3_times_alone"] for way in ways], 0.2, color=COLOURS[name])
    for axis, title in ((cost_axis, "$ for 1000 pictures"), (wait_axis, "% of pictures within 3 × their time alone")):
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(len(sizes)), sizes)
        axis.set_xlabel("largest fleet, replicas")
    for axis in (over_day, cost_axis, wait_axis):
        axis.grid(color="#e5e5e5", axis="y")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.out)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate or plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    made_up = commands.add_parser("simulate")
    made_up.set_defaults(run=simulate)
    made_up.add_argument("--full-size", type=Path, required=True, help="what benchmarks.full_size wrote")
    made_up.add_argument("--max-replicas", type=_numbers, default=(1, 16, 64, 256), metavar="N,…")
    made_up.add_argument("--hours", type=float, default=2.0, help="length of the day (default %(default)g)")
    made_up.add_argument("--usd-per-hour", type=float, default=3.9, help="of one replica (default %(default)g)")
    made_up.add_argument("--seed", type=int, default=0)
    drawn = commands.add_parser("plot")
    drawn.set_defaults(run=plot)
    drawn.add_argument("--simulated", type=Path, required=True)
    for command in (made_up, drawn):
        command.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    run: Callable[[argparse.Namespace], None] = arguments.run
    run(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
