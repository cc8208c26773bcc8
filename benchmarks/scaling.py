"""What autoscaling by work costs and gives, on fleets nobody can rent for a benchmark: one simulated day.

    python -m benchmarks.scaling simulate --full-size benchmarks/results/full_size_h200.json \
        --max-replicas 1,16,64,256 --out benchmarks/results/scaling.json
    python -m benchmarks.scaling plot --simulated benchmarks/results/scaling.json --out docs/images/scaling.png

The same day is served by a fixed fleet for the peak, by a fixed fleet for the mean, by counting requests (what Ray
Serve does unless told otherwise: requests over a target, up after 30 s, down after 10 minutes) and by work
(:mod:`serve_app.scaling.decision`, the code that runs in production), the latter as shipped and with more room to
spare. Every way has a setting that buys punctuality with replicas, so ``--curves-at`` takes one size through several
settings of each: ways compare at equal cost, or at an equal share of pictures in time.

Replicas are the engine's own ledger and default policy on simulated time (:mod:`benchmarks.simulation.fleet`), with the
limits of ``serve_config.yaml``. A day has a night, a morning, an evening peak and bursts, and is shortened, all rates
being kept, so that large fleets can be simulated; cold starts and delays are not shortened, which makes scaling look
worse than it is. All sizes together take about a quarter of an hour of one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import traces
from benchmarks.progress import tell
from benchmarks.scaling_plot import plot
from benchmarks.scheduler.compare import SLO_FACTOR
from benchmarks.scheduler.crowds import mean_alone_seconds
from benchmarks.scheduler.simulate import as_measured
from benchmarks.simulation.fleet import Fleet, FleetSettings, Moment, Run, Scaling, alone_seconds
from benchmarks.simulation.request_counting import RequestCounting
from benchmarks.traces import Arrival, Mix
from engine.cost_model import CostModel
from engine.profile import load_profile
from engine.scheduler import StepBudget
from serve_app.scaling.decision import Scaler, Snapshot
from serve_app.scaling.rules import USUAL_MAX_UTILISATION, ScalingRules

MONDAY = datetime.datetime(2026, 3, 2, tzinfo=datetime.UTC)

NIGHT = 0.04
"""Traffic at its lowest, as a share of the peak."""

TARGET_UTILISATION = 0.7
"""Of a fleet of the largest size, at the peak."""

COLD_START_S = 150.0
"""A node from a warm pool and the weights from its disk: 48 s were measured for the application alone
(docs/full-size.md), the rest is the node."""

NUM_POINTS = 400

USUAL_LIMITS: dict[str, Any] = {"max_requests": 64, "max_queued_device_s": 300.0, "time_limit_s": 300.0}
"""Those of ``serve_config.yaml``: ``max_ongoing_requests``, ``max_queued_device_s``, ``request_timeout_s``."""

UTILISATIONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.85)
"""Settings of scaling by work, as ``max_utilisation``."""

COUNTS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Settings of scaling by requests, as requests a replica."""

SHARES = (0.4, 0.5, 0.6, 0.75, 1.0)
"""Fixed fleets, as shares of the largest."""


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

    def __init__(self, max_replicas: int, *, may_owe_s: float, max_utilisation: float) -> None:
        self._max_replicas = max_replicas
        self._scaler = Scaler(
            ScalingRules(
                may_owe_s=may_owe_s,
                cold_start_s=COLD_START_S,
                hold_s=300.0,
                idle_to_zero_s=600.0,
                max_utilisation=max_utilisation,
            )
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

    def __init__(self, max_replicas: int, *, per_replica: float) -> None:
        self._counting = RequestCounting(per_replica=per_replica, max_replicas=max_replicas)

    def __call__(self, fleet: Fleet) -> int:
        """See :class:`benchmarks.simulation.fleet.Scaling`."""
        return self._counting.replicas(fleet.now_s, num_requests=float(fleet.num_requests), num_target=fleet.num_target)


def report(run: Run, *, usd_per_hour: float) -> dict[str, Any]:
    """What a day cost and how it was. Who got no picture is not in time, and pays nothing."""
    drawn = [outcome for outcome in run.outcomes if outcome.latency_s is not None]
    waits_s = [(outcome.latency_s or 0.0) - outcome.alone_s for outcome in drawn]
    num_in_time = sum((outcome.latency_s or 0.0) <= SLO_FACTOR * outcome.alone_s for outcome in drawn)
    step = max(1, len(run.moments) // NUM_POINTS)
    return {
        "num_requests": len(run.outcomes),
        "num_without_picture": len(run.outcomes) - len(drawn),
        "usd_per_image": round(run.replica_s / 3600 * usd_per_hour / len(drawn), 6),
        "utilisation": round(run.busy_s / run.replica_s, 3),
        "within_3_times_alone": round(num_in_time / len(run.outcomes), 4),
        "beyond_alone_s": {f"p{p}": round(float(np.percentile(waits_s, p)), 2) for p in (50, 95, 99)},
        "num_cold_starts": run.num_cold_starts,
        "replica_hours": round(run.replica_s / 3600, 2),
        "moments": [_point(moment) for moment in run.moments[::step]],
    }


def _point(moment: Moment) -> list[float]:
    num_present = moment.num_serving + moment.num_starting + moment.num_draining
    return [round(moment.at_s), moment.num_serving, num_present, round(moment.owed_s, 1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Day:
    """One day for a fleet of at most so many replicas, to be served in one way after another."""

    settings: FleetSettings
    trace: tuple[Arrival, ...]
    max_replicas: int
    mean_alone_s: float
    usd_per_hour: float

    def served(self, name: str, *, num_replicas: int = 0, scaling: Scaling | None = None) -> dict[str, Any]:
        """What :func:`report` says of it."""
        settings = dataclasses.replace(self.settings, num_replicas=num_replicas)
        found = report(Fleet(settings, scaling).run(self.trace), usd_per_hour=self.usd_per_hour)
        beyond_s = found["beyond_alone_s"]["p95"]
        tell(
            f"{self.max_replicas:3} {name:22} ${found['usd_per_image']:.4f}  "
            f"in time {found['within_3_times_alone']:.1%}  busy {found['utilisation']:.0%}  "
            f"beyond alone p95 {beyond_s:.1f} s  cold starts {found['num_cold_starts']}  "
            f"without picture {found['num_without_picture']}"
        )
        return found

    def by_work(self, max_utilisation: float) -> ByWork:
        """The production scaler with such a setting."""
        return ByWork(self.max_replicas, may_owe_s=2 * self.mean_alone_s, max_utilisation=max_utilisation)

    def ways(self) -> dict[str, dict[str, Any]]:
        """Each way once."""
        settings = self.settings
        work_s = sum(alone_seconds(arrival, settings.profile, settings.cost) for arrival in self.trace)
        num_for_mean = math.ceil(work_s / self.trace[-1].at_s / TARGET_UTILISATION)
        return {
            "fixed for the peak": self.served("fixed for the peak", num_replicas=self.max_replicas),
            "fixed for the mean": self.served("fixed for the mean", num_replicas=num_for_mean),
            "by requests": self.served("by requests", scaling=ByRequests(self.max_replicas, per_replica=2.0)),
            "by work": self.served("by work", scaling=self.by_work(USUAL_MAX_UTILISATION)),
            "by work, half busy": self.served("by work, half busy", scaling=self.by_work(0.5)),
        }

    def curves(self) -> dict[str, list[dict[str, Any]]]:
        """Cost and punctuality of each way by its setting."""

        def point(setting: float, name: str, **how: Any) -> dict[str, Any]:
            found = self.served(f"{name} {setting:g}", **how)
            return {"setting": setting} | {key: value for key, value in found.items() if key != "moments"}

        return {
            "fixed": [point(x, "fixed", num_replicas=max(1, round(x * self.max_replicas))) for x in SHARES],
            "by requests": [
                point(x, "by requests", scaling=ByRequests(self.max_replicas, per_replica=x)) for x in COUNTS
            ],
            "by work": [point(x, "by work", scaling=self.by_work(x)) for x in UTILISATIONS],
        }


def simulate(arguments: argparse.Namespace) -> None:
    """Every fleet size, every way."""
    basis = as_measured(json.loads(arguments.full_size.read_text()))
    settings = FleetSettings(
        profile=load_profile(basis["profile"]),
        cost=CostModel.from_dict(basis["cost_model"]),
        policy="shortest_remaining",
        budget=StepBudget(max_samples=basis["max_batch_samples"], max_tokens=basis["max_batch_tokens"]),
        cold_start_s=COLD_START_S,
        seed=arguments.seed,
        **USUAL_LIMITS,
    )
    mix = Mix()
    mean_s = mean_alone_seconds(settings.profile, settings.cost, mix, seed=arguments.seed)

    def a_day(max_replicas: int) -> Day:
        peak = TARGET_UTILISATION * max_replicas / mean_s
        trace = day(peak_rate_per_s=peak, duration_s=arguments.hours * 3600, seed=arguments.seed, mix=mix)
        return Day(
            settings=settings,
            trace=trace,
            max_replicas=max_replicas,
            mean_alone_s=mean_s,
            usd_per_hour=arguments.usd_per_hour,
        )

    result = {
        "command": " ".join(["python -m benchmarks.scaling", *sys.argv[1:]]),
        "basis": str(arguments.full_size),
        "usd_per_hour": arguments.usd_per_hour,
        "cold_start_s": COLD_START_S,
        "hours": arguments.hours,
        "mean_alone_s": round(mean_s, 3),
        "limits": USUAL_LIMITS,
        "curves": {"max_replicas": arguments.curves_at, "ways": a_day(arguments.curves_at).curves()},
        "fleets": [{"max_replicas": num, "ways": a_day(num).ways()} for num in arguments.max_replicas],
    }
    arguments.out.write_text(json.dumps(result) + "\n")


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
    made_up.add_argument("--curves-at", type=int, default=16, metavar="N", help="replicas (default %(default)s)")
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
