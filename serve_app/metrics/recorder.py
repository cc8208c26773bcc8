"""What one process counts: plain numbers under one lock, and the report of them that travels."""

from __future__ import annotations

import bisect
import dataclasses
import secrets
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from serve_app.metrics.metric import Metric, Series, Values

CLOSE_S: Final = 5.0
"""A last report takes milliseconds, unless the ledger is just being replaced."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything one process has counted since it began. The newest replaces those before: sending one twice, late
    or never changes nothing once a later one arrived.

    Attributes:
        source: a name that no other process ever had.
        number: ascending.
        totals: counters and histograms since the process began.
        gauges: how things are now.
    """

    source: str
    number: int
    totals: Values
    gauges: Values


class Recorder:
    """Counts in one process. Every method may be called from any thread, and costs microseconds.

    Args:
        source: see :class:`Report`; made up where none is given.
    """

    def __init__(self, source: str = "") -> None:
        self.source = source or secrets.token_hex(8)
        self.changed = threading.Event()
        self._lock = threading.RLock()
        self._totals: dict[Series, list[float]] = {}
        self._gauges: dict[Series, list[float]] = {}
        self._num_open: dict[str, int] = {}
        self._number = 0
        self._refreshers: list[Callable[[], None]] = []
        self._closers: list[Callable[[float], None]] = []
        self._is_closed = False

    def at_once(self) -> AbstractContextManager[object]:
        """What is counted within goes into the same report."""
        return self._lock

    def add(self, metric: Metric, *values: str, by: float = 1.0) -> None:
        """Raise a counter. ``values`` are those of its labels, here and below."""
        assert metric.kind == "counter", metric.name
        assert by >= 0.0, metric.name
        with self._lock:
            self._numbers(metric, values)[0] += by
        self.changed.set()

    def follow(self, metric: Metric, *values: str, total: float) -> None:
        """Let a counter follow one that somebody else keeps."""
        assert metric.kind == "counter", metric.name
        with self._lock:
            numbers = self._numbers(metric, values)
            numbers[0] = max(numbers[0], total)

    def observe(self, metric: Metric, value: float, *values: str) -> None:
        """Put a value into a histogram."""
        assert metric.kind == "histogram", metric.name
        with self._lock:
            numbers = self._numbers(metric, values)
            numbers[bisect.bisect_left(metric.buckets, value)] += 1
            numbers[-1] += value
        self.changed.set()

    def set(self, metric: Metric, value: float, *values: str) -> None:
        """Say how something is now."""
        assert metric.kind == "gauge", metric.name
        with self._lock:
            self._numbers(metric, values)[0] = value
        self.changed.set()

    def refresh_with(self, refresh: Callable[[], None]) -> None:
        """Call this before every report, for what is looked up and not told. From another thread."""
        self._refreshers.append(refresh)

    def close_with(self, close: Callable[[float], None]) -> None:
        """Call this at the end, with the seconds it may take."""
        self._closers.append(close)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Nothing is counted here any more: report a last time, without gauges.

        Args:
            timeout_s: how long that is waited for; with 0 it happens meanwhile.
        """
        self._is_closed = True
        while self._closers:
            self._closers.pop()(timeout_s)

    def report(self) -> Report:
        """All of it, now."""
        for refresh in self._refreshers:
            refresh()
        self.changed.clear()
        with self._lock:
            self._number += 1
            return Report(
                source=self.source,
                number=self._number,
                totals={series: tuple(numbers) for series, numbers in self._totals.items()},
                gauges={series: tuple(n) for series, n in self._gauges.items() if not self._is_closed},
            )

    def _numbers(self, metric: Metric, values: tuple[str, ...]) -> list[float]:
        """The numbers of a series, made where it is new. The caller holds the lock."""
        assert len(values) == len(metric.labels), f"{metric.name} has the labels {metric.labels}"
        kept = self._gauges if metric.kind == "gauge" else self._totals
        series = (metric.name, values)
        if series not in kept:
            if not self._may_begin(metric, values):
                series = (metric.name, metric.other())
            kept.setdefault(series, [0.0] * metric.num_numbers)
        return kept[series]

    def _may_begin(self, metric: Metric, values: tuple[str, ...]) -> bool:
        if metric.series is not None:
            return values in metric.series
        self._num_open[metric.name] = self._num_open.get(metric.name, 0) + 1
        return self._num_open[metric.name] <= metric.max_open
