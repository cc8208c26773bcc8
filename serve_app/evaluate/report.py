"""What an evaluation found, as numbers and as words."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from engine.face.identity import SAME_PERSON_SIMILARITY
from serve_app.evaluate.draw import Drawn
from serve_app.evaluate.measure import Likeness, distribution, paired_difference, summarise
from serve_app.evaluate.people import Person
from serve_app.evaluate.plan import Endpoint, Job

JUDGE: Final = "dlib's face-recognition ResNet"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Everything a report is made of.

    Attributes:
        drawn, likenesses: by :attr:`Job.path`.
        photos: real photos alone, see :func:`serve_app.evaluate.measure.between_photos`.
    """

    command: str
    endpoints: Sequence[Endpoint]
    people: Sequence[Person]
    prompts: Sequence[str]
    plan: Sequence[Job]
    drawn: Mapping[Path, Drawn]
    likenesses: Mapping[Path, Likeness]
    photos: Mapping[str, Sequence[float]]

    def of(self, endpoint: Endpoint) -> list[Likeness]:
        """One endpoint's pictures, measured."""
        return [one for one in self.likenesses.values() if one.endpoint == endpoint.name]


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Every number, and every picture's own."""
    first, *further = evaluation.endpoints
    return {
        "command": evaluation.command,
        "judge": JUDGE,
        "same_person_similarity": SAME_PERSON_SIMILARITY,
        "num_people": len(evaluation.people),
        "prompts": list(evaluation.prompts),
        "photos": {name: distribution(values) for name, values in evaluation.photos.items()},
        "endpoints": {endpoint.name: endpoint_numbers(evaluation, endpoint) for endpoint in evaluation.endpoints},
        "differences": {
            f"{endpoint.name} - {first.name}": paired_difference(evaluation.of(first), evaluation.of(endpoint))
            for endpoint in further
        },
        "pictures": [
            {"file": str(job.path), **_without_fingerprint(evaluation.drawn[job.path])}
            | (dataclasses.asdict(evaluation.likenesses[job.path]) if job.path in evaluation.likenesses else {})
            for job in evaluation.plan
        ],
    }


def endpoint_numbers(evaluation: Evaluation, endpoint: Endpoint) -> dict[str, Any]:
    """One endpoint: identity, failures, cost and time."""
    drawn = [evaluation.drawn[job.path] for job in evaluation.plan if job.endpoint.name == endpoint.name]
    costs = [one.cost_usd for one in drawn if one.cost_usd is not None]
    times = [one.execution_time_s for one in drawn if one.execution_time_s is not None]
    errors = [one.error for one in drawn if one.error]
    return {
        "url": endpoint.url,
        "fields": dict(endpoint.fields),
        "models": sorted({one.model for one in drawn if one.model}),
        "gpu_types": sorted({one.gpu_type for one in drawn if one.gpu_type}),
        "num_asked": len(drawn),
        "num_failed": len(errors),
        "errors": {error: errors.count(error) for error in dict.fromkeys(errors)},
        **summarise(evaluation.of(endpoint)),
        "cost_usd": round(sum(costs), 6),
        "cost_usd_per_picture": round(statistics.fmean(costs), 6) if costs else None,
        "execution_time_s_median": round(statistics.median(times), 3) if times else None,
        "execution_time_s_sum": round(sum(times), 3),
    }


def in_words(numbers: Mapping[str, Any]) -> list[str]:
    """The JSON's numbers for a terminal."""
    rows = comparison(numbers)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            f"{cell:<{w}}" if n == 0 else f"{cell:>{w}}" for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return lines + [difference_in_words(name, value) for name, value in numbers["differences"].items()]


def comparison(numbers: Mapping[str, Any]) -> list[list[str]]:
    """Rows of a table with a column for each endpoint."""
    sides = numbers["endpoints"]

    def row(label: str, show: Any) -> list[str]:
        return [label, *(show(side) for side in sides.values())]

    def median(side: Mapping[str, Any], name: str) -> str:
        values = side[name]
        return "–" if values is None else f"{values['p50']:.3f}  ({values['p5']:.3f} to {values['p95']:.3f})"

    rows = [["", *sides]]
    rows.append(row("model", lambda side: ", ".join(side["models"]) or "–"))
    rows.append(row("asked with", lambda side: " ".join(f"{k}={v}" for k, v in side["fields"].items()) or "defaults"))
    rows.append(row("pictures", lambda side: f"{side['num_pictures']} of {side['num_asked']}"))
    rows.append(row("with a face", lambda side: _percent(side["share_with_face"])))
    rows.append(row("like the own reference: median (5 % to 95 %)", lambda side: median(side, "own")))
    rows.append(row("like other references", lambda side: median(side, "other")))
    rows.append(row("like other photos of the person", lambda side: median(side, "photos")))
    rows.append(row("taken for the same person", lambda side: _percent(side["share_same_person"])))
    rows.append(row("own reference nearest of all", lambda side: _percent(side["share_own_nearest"])))
    rows.append(
        row("AUC, own against other references", lambda side: "–" if side["auc"] is None else f"{side['auc']:.4f}")
    )
    rows.append(row("cost a picture, US dollars", lambda side: _number(side["cost_usd_per_picture"], 6)))
    rows.append(row("seconds a picture, median", lambda side: _number(side["execution_time_s_median"], 2)))
    rows.append(row("device", lambda side: ", ".join(side["gpu_types"]) or "–"))
    return rows


def difference_in_words(name: str, value: Mapping[str, Any] | None) -> str:
    if value is None:
        return f"{name}: nothing to compare, no picture of both shows a face."
    verdict = "no difference shown" if value["low"] <= 0.0 <= value["high"] else "a difference"
    return (
        f"{name}: likeness to the own reference {value['mean']:+.4f} (95 % between {value['low']:+.4f} and "
        f"{value['high']:+.4f}; {value['num_pairs']} pairs of {value['num_people']} people): {verdict}."
    )


def _without_fingerprint(drawn: Drawn) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(drawn).items() if name != "fingerprint"}


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100.0 * share:.1f} %"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
