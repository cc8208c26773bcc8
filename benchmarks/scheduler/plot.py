"""Good pictures and the latency of small ones, by load: measured, the same simulated, and larger crowds simulated."""

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
    larger = simulated["fleets"][0]["crowds"]
    sources = ((larger, "-"), (measured["crowds"], "+"), (simulated["twins"], "o"))
    for column, arrivals in enumerate(get_args(ArrivalProcess)):
        for policy in POLICIES:
            for crowds, marks in sources:
                points = [
                    (crowd["load"], crowd["policies"][policy]) for crowd in crowds if crowd["arrivals"] == arrivals
                ]
                loads = [100 * load for load, _ in points]
                style = {"color": COLOURS[policy], "markersize": 8, "markerfacecolor": "none"}
                label = TITLES[policy] if marks == "-" else None
                shares = [100 * found["good_share"] for _, found in points]
                axes[0, column].plot(loads, shares, marks, label=label, **style)
                axes[1, column].plot(loads, [found["small_latency_s"]["p95"] for _, found in points], marks, **style)
        axes[0, column].set_title({"poisson": "Poisson arrivals", "bursts": "bursts of eight"}[arrivals])
        axes[1, column].set_xlabel("load, % of the device drawing one after another")
        axes[1, column].set_yscale("log")
    axes[0, 0].set_ylabel("% of pictures within 3 × their time alone")
    axes[1, 0].set_ylabel("p95 of small pictures, s")
    axes[0, 0].set_ylim(0, 102)
    axes[0, 1].set_ylim(0, 102)
    axes[0, 1].legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="upper right")
    for axis in axes.flat:
        axis.grid(color="#e5e5e5")
        axis.spines[["top", "right"]].set_visible(False)
    num_measured, num_larger = (
        crowds[0]["policies"]["first_come"]["num_requests"] for crowds in (measured["crowds"], larger)
    )
    figure.suptitle(
        f"{measured['profile']} on {measured['device']}, crowds of {num_measured}: + measured, "
        f"o simulated on a device as slow as then;\nlines: crowds of {num_larger}, simulated",
        fontsize=10,
    )
    figure.savefig(arguments.out, dpi=80)
