"""Sums as a page in the Prometheus text format."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from serve_app.metrics.metric import PREFIX, Metric, Values

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


def render(table: Iterable[Metric], values: Values) -> bytes:
    """Every series of the table: those that nothing was counted in yet stand at zero."""
    registry = CollectorRegistry()
    registry.register(_Page(table, values))
    return generate_latest(registry)


class _Page(Collector):
    def __init__(self, table: Iterable[Metric], values: Values) -> None:
        self._table = table
        self._values = values

    def collect(self) -> Iterator[_Family]:
        for metric in self._table:
            counted = {labels: numbers for (name, labels), numbers in self._values.items() if name == metric.name}
            zeros = dict.fromkeys(metric.series or (), (0.0,) * metric.num_numbers)
            yield _family(metric, dict(sorted((zeros | counted).items())))


def _family(metric: Metric, series: dict[tuple[str, ...], tuple[float, ...]]) -> _Family:
    name = PREFIX + metric.name
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(name, metric.text, labels=metric.labels)
        edges = [*(repr(float(edge)) for edge in metric.buckets), "+Inf"]
        for labels, (*counts, total) in series.items():
            buckets = list(zip(edges, itertools.accumulate(counts), strict=True))
            histogram.add_metric(labels, buckets=buckets, sum_value=total)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(name, metric.text, labels=metric.labels)
    for labels, (value,) in series.items():
        family.add_metric(labels, value)
    return family
