"""What a metric is: a name with its unit, a kind, and every label value it can ever have."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]

PREFIX: Final = "likeness_"

OTHER: Final = "other"
"""Stands for every label value that a metric does not list."""

MAX_OPEN_SERIES: Final = 8
"""Combinations of label values that one process may make up for a metric with an open label, where it names no other
number; usual is one: its device, its replica."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One row of the table.

    Attributes:
        name: with its unit, without :data:`PREFIX` and without ``_total``.
        kind: counters and histograms are summed over all processes that ever were, gauges over those alive.
        text: one sentence for people.
        labels: names, in order.
        series: every combination of label values there can be; shown from the start, at zero, so that the first event
            of a kind is an increase and not a series that Prometheus never saw at zero. None where a label is open: a
            device's name, a replica's, a client's from the operator's key file.
        max_open: combinations that one process may make up for an open metric.
        buckets: upper edges of a histogram, ascending, without infinity.
    """

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    series: frozenset[tuple[str, ...]] | None = frozenset({()})
    max_open: int = MAX_OPEN_SERIES
    buckets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert (self.kind == "histogram") == bool(self.buckets), f"{self.name}: buckets are a histogram's"
        assert self.buckets == tuple(sorted(set(self.buckets))), f"{self.name}: buckets must ascend"
        assert all(0.0 <= edge < math.inf for edge in self.buckets), f"{self.name}: Prometheus wants sums that rise"
        assert self.series is None or all(len(values) == len(self.labels) for values in self.series), self.name

    @property
    def num_numbers(self) -> int:
        """Numbers of one series: its value; or a count for each bucket, one for what is above them, and the sum."""
        return len(self.buckets) + 2 if self.buckets else 1

    @property
    def full_name(self) -> str:
        """As Prometheus shows it."""
        return PREFIX + self.name + ("_total" if self.kind == "counter" else "")

    def other(self) -> tuple[str, ...]:
        """The label values that stand for all that are not listed."""
        return (OTHER,) * len(self.labels)


def combinations(**values: tuple[str, ...]) -> tuple[tuple[str, ...], frozenset[tuple[str, ...]]]:
    """Label names and all combinations of their values."""
    return tuple(values), frozenset(itertools.product(*values.values()))


def closed(name: str, kind: Kind, text: str, *, buckets: tuple[float, ...] = (), **labels: tuple[str, ...]) -> Metric:
    """A metric all of whose label values are known; every combination may occur."""
    names, series = combinations(**labels)
    return Metric(name=name, kind=kind, text=text, labels=names, series=series, buckets=buckets)


def open_(name: str, kind: Kind, text: str, *labels: str, max_open: int = MAX_OPEN_SERIES) -> Metric:
    """A metric with a label whose values are not known here."""
    return Metric(name=name, kind=kind, text=text, labels=labels, series=None, max_open=max_open)


Series = tuple[str, tuple[str, ...]]
"""A metric's name and the values of its labels."""

Values = Mapping[Series, tuple[float, ...]]
"""What series hold; see :attr:`Metric.num_numbers`."""
