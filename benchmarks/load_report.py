"""What a load run showed: numbers for scripts, a plot, and a page for people."""

from __future__ import annotations

import collections
import dataclasses
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.load_sender import Outcome
from serve_app import report_page

PERCENTILES = (50, 90, 95, 99)
SHOWN_STAGES = (
    "face",
    "queue",
    "encode",
    "denoise",
    "decode",
    "compress",
    "route",
    "service and network",
    "late sending",
)
"""In the order of a request's road; the last two are what the service's own figures leave of the latency."""

_COLOURS = ("#7fa8c9", "#c9c2a5", "#9bbf85", "#39678c", "#d59b5b", "#a8748f", "#b5b5b5", "#8a8a8a", "#c44e52")
_OK_COLOUR, _BAD_COLOUR, _ALL_COLOUR = "#39678c", "#c44e52", "#444444"


def summarise(
    outcomes: Sequence[Outcome], answers: Mapping[tuple[int, str], int], *, slo_s: float, duration_s: float
) -> dict[str, Any]:
    """All numbers of a run.

    Args:
        outcomes: one for every request that was sent.
        answers: HTTP answers by status and type, refused attempts included.
        slo_s: a picture within this latency counts as good.
        duration_s: from the start to the last answer.
    """
    done = [outcome for outcome in outcomes if outcome.is_ok]
    num_good = sum(outcome.latency_s <= slo_s for outcome in done)
    return {
        "num_requests": len(outcomes),
        "num_ok": len(done),
        "num_within_slo": num_good,
        "slo_s": slo_s,
        "duration_s": round(duration_s, 3),
        "pictures_per_s": _rounded(len(done) / duration_s),
        "goodput_per_s": _rounded(num_good / duration_s),
        "share_within_slo": _rounded(num_good / len(outcomes)) if outcomes else None,
        "cost_usd": _rounded(sum(outcome.cost_usd for outcome in done)),
        "num_attempts": sum(outcome.num_attempts for outcome in outcomes),
        "latency_s": distribution(outcome.latency_s for outcome in done),
        "latency_from_send_s": distribution(outcome.done_s - outcome.sent_s for outcome in done),
        "late_sending_s": distribution(outcome.sent_s - outcome.arrival.at_s for outcome in outcomes),
        "results": dict(collections.Counter(outcome.result for outcome in outcomes).most_common()),
        "answers": [
            {"status": status, "type": kind, "count": count} for (status, kind), count in sorted(answers.items())
        ],
        "stages_s": {
            name: distribution(outcome.stages_s[name] for outcome in done if name in outcome.stages_s)
            for name in _stage_names(done)
        },
        "by_kind": [_kind(kind, group, slo_s) for kind, group in _grouped(outcomes, _kind_of)],
    }


def distribution(values: Iterable[float]) -> dict[str, float] | None:
    """Count, mean, percentiles and maximum; None of nothing."""
    array = np.fromiter(values, dtype=np.float64)
    if not array.size:
        return None
    points = {f"p{percent}": _rounded(float(np.percentile(array, percent))) for percent in PERCENTILES}
    return {"count": int(array.size), "mean": _rounded(float(array.mean())), **points, "max": _rounded(array.max())}


def _kind_of(outcome: Outcome) -> str:
    arrival = outcome.arrival
    return f"{arrival.width_px}×{arrival.height_px}"


def _kind(kind: str, group: Sequence[Outcome], slo_s: float) -> dict[str, Any]:
    done = [outcome for outcome in group if outcome.is_ok]
    return {
        "kind": kind,
        "num_requests": len(group),
        "num_ok": len(done),
        "num_within_slo": sum(outcome.latency_s <= slo_s for outcome in done),
        "latency_s": distribution(outcome.latency_s for outcome in done),
    }


def _grouped(outcomes: Iterable[Outcome], key: Callable[[Outcome], str]) -> list[tuple[str, list[Outcome]]]:
    groups: dict[str, list[Outcome]] = collections.defaultdict(list)
    for outcome in outcomes:
        groups[key(outcome)].append(outcome)
    return sorted(groups.items(), key=lambda item: (len(item[0]), item[0]))


def _stage_names(done: Iterable[Outcome]) -> list[str]:
    return list(dict.fromkeys(name for outcome in done for name in outcome.stages_s))


def stage_means(done: Sequence[Outcome]) -> dict[str, float]:
    """Where the mean latency goes, in seconds; the parts add up to it."""
    means = dict.fromkeys(SHOWN_STAGES, 0.0)
    for outcome in done:
        known = {name: outcome.stages_s.get(name, 0.0) for name in SHOWN_STAGES}
        known["late sending"] = outcome.sent_s - outcome.arrival.at_s
        known["service and network"] = outcome.latency_s - sum(known.values())
        for name, seconds in known.items():
            means[name] += seconds / len(done)
    return means


def plot(outcomes: Sequence[Outcome], *, slo_s: float, title: str) -> bytes:
    """The run as a PNG: traffic and latency over time, latency's distribution, where the time goes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(2, 2)
    done = [outcome for outcome in outcomes if outcome.is_ok]
    _plot_traffic(axes[0, 0], outcomes)
    _plot_latency(axes[0, 1], outcomes, slo_s)
    _plot_distribution(axes[1, 0], done, slo_s)
    _plot_stages(axes[1, 1], done)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _plot_traffic(axis: Any, outcomes: Sequence[Outcome]) -> None:
    events = [(outcome.arrival.at_s, 1) for outcome in outcomes] + [(outcome.done_s, -1) for outcome in outcomes]
    times, changes = zip(*sorted(events), strict=True)
    axis.step(times, np.cumsum(changes), where="post", color=_ALL_COLOUR, linewidth=1.2, label="open requests")
    end_s = times[-1]
    edges = np.linspace(0.0, end_s, 41)
    for values, colour, label in (
        ([outcome.arrival.at_s for outcome in outcomes], "#c9c2a5", "asked for, a second"),
        ([outcome.done_s for outcome in outcomes if outcome.is_ok], _OK_COLOUR, "pictures, a second"),
    ):
        counts, _ = np.histogram(values, edges)
        axis.stairs(counts / (edges[1] - edges[0]), edges, color=colour, label=label, linewidth=1.5)
    axis.set(xlabel="seconds from the start", ylabel="requests", title="Traffic", ylim=(0, None))
    axis.legend(frameon=False)


def _plot_latency(axis: Any, outcomes: Sequence[Outcome], slo_s: float) -> None:
    for is_ok, colour, label in ((True, _OK_COLOUR, "picture"), (False, _BAD_COLOUR, "no picture")):
        chosen = [outcome for outcome in outcomes if outcome.is_ok == is_ok]
        if chosen:
            at_s, latency_s = [o.arrival.at_s for o in chosen], [o.latency_s for o in chosen]
            axis.scatter(at_s, latency_s, s=9, color=colour, label=label, alpha=0.7, linewidths=0)
    axis.axhline(slo_s, color=_BAD_COLOUR, linestyle="--", linewidth=1, label=f"objective {slo_s:g} s")
    axis.set(xlabel="asked for at, seconds", ylabel="latency, seconds", title="Each request", ylim=(0, None))
    axis.legend(frameon=False)


def _plot_distribution(axis: Any, done: Sequence[Outcome], slo_s: float) -> None:
    groups = [("all", list(done)), *_grouped(done, _kind_of)]
    colours = (_ALL_COLOUR, *_COLOURS[::2], *_COLOURS[1::2])
    for (kind, group), colour in zip(groups, colours, strict=False):
        latency_s = sorted(outcome.latency_s for outcome in group)
        shares = np.arange(1, len(latency_s) + 1) / max(1, len(latency_s))
        axis.step(latency_s, shares, where="post", color=colour, label=kind, linewidth=2.0 if kind == "all" else 1.2)
    axis.axvline(slo_s, color=_BAD_COLOUR, linestyle="--", linewidth=1)
    axis.set(
        xlabel="latency, seconds", ylabel="share of pictures", title="Latency by size", xlim=(0, None), ylim=(0, 1)
    )
    axis.legend(frameon=False)


def _plot_stages(axis: Any, done: Sequence[Outcome]) -> None:
    means = stage_means(done) if done else dict.fromkeys(SHOWN_STAGES, 0.0)
    names = list(reversed(SHOWN_STAGES))
    bars = axis.barh(names, [means[name] for name in names], color=list(reversed(_COLOURS)))
    axis.bar_label(bars, [f"{means[name]:.3f}" for name in names], padding=3)
    axis.set(xlabel="mean seconds of a picture", title="Where the time goes")
    axis.margins(x=0.15)


def render_page(report: Mapping[str, Any], png: bytes) -> str:
    """The run as one HTML file."""
    summary, parts = report["summary"], report_page
    pictures = [
        ("pictures", f"{summary['num_ok']} of {summary['num_requests']} requests, {summary['num_attempts']} attempts"),
        ("within the objective", f"{summary['num_within_slo']} within {summary['slo_s']:g} s"),
        ("pictures a second", f"{summary['pictures_per_s']:g}"),
        ("goodput: of those within the objective", f"{summary['goodput_per_s']:g} a second"),
        ("charged", f"{summary['cost_usd']:.6f} US dollars"),
        ("the run took", f"{summary['duration_s']:.1f} s" + ", interrupted" * report["is_interrupted"]),
    ]
    return parts.page(
        report["title"],
        [
            parts.table(("", ""), pictures),
            parts.picture(png, "image/png", alt="traffic, latency, its distribution, and where the time goes"),
            parts.heading("Latency, seconds"),
            parts.paragraph(
                "From the moment the trace has for a request to the last byte of its answer, whenever this machine got "
                "round to sending it. The row below counts from the sending instead.",
                is_note=True,
            ),
            _distributions(
                {
                    "all pictures": summary["latency_s"],
                    "the same, from sending": summary["latency_from_send_s"],
                    "sent too late by this machine": summary["late_sending_s"],
                    **{row["kind"]: row["latency_s"] for row in summary["by_kind"]},
                }
            ),
            parts.heading("The service's own stages, seconds"),
            _distributions(summary["stages_s"]),
            parts.heading("Results"),
            parts.table(("requests that ended as", "count"), summary["results"].items()),
            parts.heading("Answers"),
            parts.paragraph("Every HTTP answer, refused attempts included: what the service itself has counted."),
            parts.table(
                ("type", "status", "count"), ((row["type"], row["status"], row["count"]) for row in summary["answers"])
            ),
            parts.heading("How it was run"),
            parts.code(report["command"]),
            parts.table(("", ""), report["machine"].items()),
        ],
    )


def _distributions(rows: Mapping[str, Mapping[str, float] | None]) -> str:
    columns = ("count", "mean", *(f"p{percent}" for percent in PERCENTILES), "max")
    shown = (
        (name, *(f"{values[column]:g}" if column == "count" else f"{values[column]:.3f}" for column in columns))
        for name, values in rows.items()
        if values is not None
    )
    return report_page.table(("", *columns), shown)


def as_json(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Every request with its times, for other tools."""
    return [
        {
            **dataclasses.asdict(outcome),
            "sent_s": _rounded(outcome.sent_s),
            "done_s": _rounded(outcome.done_s),
            "latency_s": _rounded(outcome.latency_s),
        }
        for outcome in sorted(outcomes, key=lambda outcome: outcome.index)
    ]


def _rounded(value: float) -> float:
    return round(float(value), 6)
