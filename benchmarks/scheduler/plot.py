"""Shares of good pictures and the latency of small ones by load: lines with crosses measured, dots simulated."""

from __future__ import annotations

import argparse
import json
from typing import get_args

from benchmarks.scheduler.compare import POLICIES
from benchmarks.traces import ArrivalProcess

COLOURS = {"first_come": "#8a8a8a", "static_batches": "#d59b5b", "shortest_remaining": "#39678c"}
TITLES = {
    "first_come": "one after another",
    "static_batches": "static batches",
    "shortest_remaining": "step by step, shortest remaining first",
}


def plot(arguments: argparse.Namespace) -> None:
    """Shares within the SLO and small requests' p95 by load, measured as lines and simulated as dots."""
    from matplotlib.figure import Figure

    measured = json.loads(arguments.measured.read_text())
    simulated = json.loads(arguments.simulated.read_text())
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    for column, arrivals in enumerate(get_args(ArrivalProcess)):
        for policy in POLICIES:
            style = {"color": COLOURS[policy], "markersize": 5}
            for source, marks in ((measured["crowds"], "-+"), (simulated["fleets"][0]["crowds"], "o")):
                points = [(c["load"], c["policies"][policy]) for c in source if c["arrivals"] == arrivals]
                loads = [100 * load for load, _ in points]
                label = TITLES[policy] if marks == "-+" else None
                axes[0, column].plot(
                    loads, [100 * found["good_share"] for _, found in points], marks, label=label, **style
                )
                axes[1, column].plot(loads, [found["small_latency_s"]["p95"] for _, found in points], marks, **style)
        axes[0, column].set_title({"poisson": "Poisson arrivals", "bursts": "bursts of eight"}[arrivals])
        axes[1, column].set_xlabel("load, % of the device drawing one after another")
        axes[1, column].set_yscale("log")
    axes[0, 0].set_ylabel("% of pictures within 3 × their time alone")
    axes[1, 0].set_ylabel("p95 of small pictures, s")
    axes[0, 0].set_ylim(0, 102)
    axes[0, 1].set_ylim(0, 102)
    axes[0, 0].legend(frameon=False, fontsize=8)
    for axis in axes.flat:
        axis.grid(color="#e5e5e5")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{measured['profile']} on {measured['device']}: lines measured, dots simulated with the measured cost model",
        fontsize=10,
    )
    figure.savefig(arguments.out)
