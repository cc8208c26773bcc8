"""Ways of scaling compared: what ``benchmarks.scaling`` simulated, as a picture."""

from __future__ import annotations

import argparse
import json

COLOURS = {
    "fixed for the peak": "#8a8a8a",
    "fixed for the mean": "#c9c2a5",
    "by requests": "#d59b5b",
    "by work": "#39678c",
    "by work, half busy": "#8fb3cc",
}


def plot(arguments: argparse.Namespace) -> None:
    """Replicas over the largest day; for every fleet what pictures cost and how many came in time; both as curves."""
    from matplotlib.figure import Figure

    result = json.loads(arguments.simulated.read_text())
    figure = Figure(figsize=(11, 6.8), layout="constrained")
    axes = figure.subplot_mosaic([["day"] * 3, ["cost", "time", "curve"]])
    largest = result["fleets"][-1]
    for name, found in largest["ways"].items():
        hours = [point[0] / 3600 for point in found["moments"]]
        axes["day"].plot(hours, [point[2] for point in found["moments"]], color=COLOURS[name], label=name)
    axes["day"].set_title(f"replicas paid for, fleet of at most {largest['max_replicas']}", fontsize=10)
    axes["day"].set_xlabel(f"hours of a day shortened to {result['hours']:g}")
    axes["day"].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))

    sizes = [str(fleet["max_replicas"]) for fleet in result["fleets"]]
    for number, name in enumerate(COLOURS):
        places = [index + 0.17 * (number - 2) for index in range(len(sizes))]
        ways = [fleet["ways"][name] for fleet in result["fleets"]]
        axes["cost"].bar(places, [1000 * way["usd_per_image"] for way in ways], 0.17, color=COLOURS[name])
        axes["time"].bar(places, [100 * way["within_3_times_alone"] for way in ways], 0.17, color=COLOURS[name])
    for panel, title in (("cost", "$ for 1000 pictures"), ("time", "% of requests within 3 × their time alone")):
        axes[panel].set_title(title, fontsize=10)
        axes[panel].set_xticks(range(len(sizes)), sizes)
        axes[panel].set_xlabel("largest fleet, replicas")

    curves = result["curves"]
    for name, points in curves["ways"].items():
        cost = [1000 * point["usd_per_image"] for point in points]
        share = [100 * point["within_3_times_alone"] for point in points]
        colour = COLOURS.get(name, COLOURS["fixed for the peak"])
        axes["curve"].plot(cost, share, "-o", color=colour, markersize=4, label=name)
    axes["curve"].set_title(f"several settings, fleet of at most {curves['max_replicas']}", fontsize=10)
    axes["curve"].set_xlabel("$ for 1000 pictures")
    axes["curve"].set_ylabel("% in time")
    axes["curve"].legend(frameon=False, fontsize=8, loc="lower right")
    for axis in axes.values():
        axis.grid(color="#e5e5e5", axis="y")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.out, dpi=80)
