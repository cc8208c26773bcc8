"""What is lost when parts of a cluster die, and what counting work instead of requests changes.

    python -m benchmarks.cluster faults      the cluster tests, as a table: minutes
    python -m benchmarks.cluster scaling     two traces on a simulated fleet, scaled by either: seconds

Both write to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.simulation.request_counting import RequestCounting
from serve_app.scaling.decision import Decision, Scaler, Snapshot
from serve_app.scaling.rules import ScalingRules
from tests.simulated_fleet import Arrival, Run, simulate

RESULTS = Path(__file__).parent / "results"

COLD_START_S = 60.0
UNTIL_S = 1800.0
MAX_REPLICAS = 16


# -- faults ------------------------------------------------------------------------------------------------------------


def faults() -> None:
    """Run the tests with their table switched on; fails where one of them does."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "faults.jsonl"
        command = [sys.executable, "-m", "serve_app.local.contain", "--private-network", "--", sys.executable]
        command += ["-m", "pytest", "-m", "cluster", "tests/cluster/test_cluster_faults.py", "-q"]
        subprocess.run(command, check=True, env=os.environ | {"LIKENESS_FAULT_TABLE": str(table)})
        rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    machine = f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}"
    write("cluster_faults", {"machine": machine, "faults": rows})
    lines = [
        "| fault under load | in flight | sent | lost | run again | all replicas back after |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["fault"], row["num_in_flight"], row["num_sent"], row["num_lost"], row["num_replayed"]]
        lines.append("| " + " | ".join([*map(str, cells), f"{row['recovered_s']:.1f} s"]) + " |")
    text = "\n".join(lines)
    (RESULTS / "cluster_faults.md").write_text(f"On {machine}.\n\n{text}\n", encoding="utf-8")
    print(text)


# -- scaling -----------------------------------------------------------------------------------------------------------


class ByRequests:
    """Ray Serve's own rule, by the newest count: averaging over 30 s, as Serve does, would only delay it."""

    def __init__(self, per_replica: float) -> None:
        self._counting = RequestCounting(
            per_replica=per_replica, min_replicas=1, max_replicas=MAX_REPLICAS, look_back_s=0.0
        )

    def __call__(self, now: Snapshot) -> Decision:
        """What :func:`tests.simulated_fleet.simulate` asks."""
        return Decision(
            num_replicas=self._counting.replicas(now.now_s, num_requests=now.num_requests, num_target=now.num_target),
            cause="work",
            reason="requests",
            owed_s=now.owed_s,
            arriving=0.0,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """Requests over half an hour."""

    title: str
    arrivals: tuple[Arrival, ...]


def traces() -> tuple[Trace, Trace]:
    """Many light requests, then few heavy ones; each second of either phase brings about as many requests at work."""
    source = random.Random(0)

    def poisson(from_s: float, until_s: float, *, rate: float, work_s: float) -> list[Arrival]:
        arrivals, at_s = [], from_s
        while (at_s := at_s + source.expovariate(rate)) < until_s:
            arrivals.append(Arrival(at_s=at_s, work_s=work_s))
        return arrivals

    light = poisson(120.0, 780.0, rate=6.0, work_s=0.1)
    bursts = [Arrival(at_s=at_s, work_s=0.1) for at_s in (300.0, 500.0, 700.0) for _ in range(60)]
    heavy = poisson(900.0, 1500.0, rate=0.08, work_s=40.0)
    mixed = poisson(60.0, 1600.0, rate=3.0, work_s=0.1) + poisson(300.0, 1500.0, rate=0.06, work_s=30.0)
    return (
        Trace(title="many light requests, then few heavy ones", arrivals=(*light, *bursts, *heavy)),
        Trace(title="both at once", arrivals=tuple(mixed)),
    )


def scaling() -> None:
    """Both policies on both traces: numbers, and a picture."""
    rules = ScalingRules(may_owe_s=30.0, cold_start_s=COLD_START_S, hold_s=300.0, idle_to_zero_s=600.0)
    policies: dict[str, Callable[[], Callable[[Snapshot], Decision]]] = {
        "work": lambda: Scaler(rules).decide,
        "2 requests a replica": lambda: ByRequests(2.0),
        "8 requests a replica": lambda: ByRequests(8.0),
    }
    runs: dict[str, dict[str, Run]] = collections.defaultdict(dict)
    rows = []
    for trace in traces():
        for name, make in policies.items():
            run = simulate(
                trace.arrivals, make(), until_s=UNTIL_S, cold_start_s=COLD_START_S, max_replicas=MAX_REPLICAS
            )
            runs[trace.title][name] = run
            rows.append(figures(trace, name, run))
            print(json.dumps(rows[-1]))
    write("cluster_scaling", {"cold_start_s": COLD_START_S, "runs": rows})
    plot(runs)


def figures(trace: Trace, policy: str, run: Run) -> dict[str, Any]:
    """What a run cost, and how long its requests waited beyond their own work."""
    waits_s = sorted(latency_s - work_s for latency_s, work_s in run.latencies_s)
    work_s = sum(arrival.work_s for arrival in trace.arrivals)
    return {
        "trace": trace.title,
        "policy": policy,
        "num_requests": len(trace.arrivals),
        "num_finished": len(waits_s),
        "replica_s": round(run.replica_s),
        "utilisation": round(work_s / run.replica_s, 3),
        "most_replicas": max(moment.num_wanted for moment in run.moments),
        "wait_p50_s": round(statistics.median(waits_s), 2),
        "wait_p95_s": round(waits_s[int(0.95 * len(waits_s))], 2),
        "wait_max_s": round(waits_s[-1], 2),
    }


def plot(runs: dict[str, dict[str, Run]]) -> None:
    """Replicas and owed work over time, a column a trace."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 5.6), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(runs), sharex=True, sharey="row", squeeze=False)
    for column, (title, by_policy) in enumerate(runs.items()):
        above, below = axes[0][column], axes[1][column]
        above.set_title(title)
        for name, run in by_policy.items():
            minutes = [moment.at_s / 60.0 for moment in run.moments]
            above.step(minutes, [moment.num_wanted for moment in run.moments], where="post", label=name, linewidth=1.3)
            below.plot(minutes, [max(0.1, moment.owed_s) for moment in run.moments], label=name, linewidth=1.0)
        below.set_yscale("log")
        below.set_xlabel("minutes")
    axes[0][0].set_ylabel("replicas wanted")
    axes[1][0].set_ylabel("work owed, s of a replica")
    axes[0][0].legend(title="scaled by", fontsize=8)
    figure.suptitle(f"Simulated fleet, a replica starts in {COLD_START_S:g} s, at most {MAX_REPLICAS}", fontsize=10)
    figure.savefig(RESULTS / "cluster_scaling.png")


def write(name: str, value: dict[str, Any]) -> None:
    """A result as JSON."""
    (RESULTS / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("what", choices=("faults", "scaling"))
    {"faults": faults, "scaling": scaling}[parser.parse_args().what]()


if __name__ == "__main__":
    main()
