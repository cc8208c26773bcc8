"""From the reports of all processes that ever counted to one sum that never goes back. No Ray, no HTTP.

Prometheus takes a counter that sinks for one that began anew, and adds its whole value again. So sums must survive the
death of whoever counted, and of the ledger itself: it writes down what it is about to show before it shows it.
"""

from __future__ import annotations

import dataclasses
import json
import operator
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from serve_app.metrics.metric import Series, Values
from serve_app.metrics.recorder import Report

SILENCE_S: Final = 10.0
"""A process that reports every second and is not heard of for so long is gone; its gauges with it."""

FORGET_S: Final = 3600.0
"""After so long a silence a process's totals join those of all that are gone, and it may not come back. Ray Serve has
replaced it long before."""

MAX_REMEMBERED: Final = 4096
"""Names of processes that may not come back; the oldest are dropped."""


class Exchange(Protocol):
    """Where the ingress takes the application's sums from, and leaves its own."""

    async def __call__(self, report: Report) -> Values:
        """Hand in a report and get totals and gauges of the whole application, this report included.

        Raises:
            StageUnavailableError: the ledger can't be reached.
        """
        ...


@dataclasses.dataclass(slots=True)
class _Source:
    report: Report
    heard_s: float


class Ledger:
    """Keeps the newest report of every process.

    Args:
        saved: what :meth:`save` gave a ledger before this one.
        clock: seconds, monotonic.
    """

    def __init__(self, *, clock: Callable[[], float], saved: str = "") -> None:
        self._clock = clock
        self._sources: dict[str, _Source] = {}
        self._gone: dict[Series, tuple[float, ...]] = {}
        self._shown: dict[Series, tuple[float, ...]] = {}
        self._forgotten: dict[str, None] = {}  # in order
        if saved:
            self._restore(json.loads(saved))

    def take(self, report: Report) -> None:
        """Put a report in the place of the one before."""
        known = self._sources.get(report.source)
        if report.source in self._forgotten or (known and known.report.number >= report.number):
            return
        self._sources[report.source] = _Source(report=report, heard_s=self._clock())

    def sums(self) -> Values:
        """Totals of all processes that ever were, gauges of those that are. Totals are never below those shown before.

        Not even by the last bit: the same numbers added up in another order may come out a little smaller.
        """
        self._forget()
        now_s = self._clock()
        sources = self._sources.values()
        totals = _sum([self._gone, *(source.report.totals for source in sources)])
        for series, before in self._shown.items():
            totals[series] = tuple(map(max, totals.get(series, before), before))
        self._shown = totals
        return {**totals, **_sum(s.report.gauges for s in sources if now_s - s.heard_s < SILENCE_S)}

    def save(self) -> str:
        """Everything needed to go on in another process."""
        sources = [[s.report.source, s.report.number, _rows(s.report.totals)] for s in self._sources.values()]
        sums = {"gone": _rows(self._gone), "shown": _rows(self._shown)}
        return json.dumps({**sums, "forgotten": list(self._forgotten), "sources": sources})

    def _restore(self, saved: dict[str, Any]) -> None:
        self._gone, self._shown = _values(saved["gone"]), _values(saved["shown"])
        self._forgotten = dict.fromkeys(saved["forgotten"])
        for source, number, totals in saved["sources"]:
            # Its gauges are the past's; its next report has them anew.
            self.take(Report(source=source, number=number, totals=_values(totals), gauges={}))

    def _forget(self) -> None:
        now_s = self._clock()
        for name in [name for name, source in self._sources.items() if now_s - source.heard_s >= FORGET_S]:
            self._gone = dict(_sum([self._gone, self._sources.pop(name).report.totals]))
            self._forgotten[name] = None
        while len(self._forgotten) > MAX_REMEMBERED:
            del self._forgotten[next(iter(self._forgotten))]


class LocalExchange:
    """The exchange of an application in one process.

    Args:
        others: what else counts in it.
    """

    def __init__(self, ledger: Ledger, others: Iterable[Callable[[], Report]] = ()) -> None:
        self._ledger = ledger
        self._others = tuple(others)

    async def __call__(self, report: Report) -> Values:
        """See :class:`Exchange`."""
        for other in (report, *(other() for other in self._others)):
            self._ledger.take(other)
        return self._ledger.sums()


def _sum(parts: Iterable[Values]) -> dict[Series, tuple[float, ...]]:
    total: dict[Series, tuple[float, ...]] = {}
    for part in parts:
        for series, numbers in part.items():
            before = total.get(series)
            total[series] = tuple(numbers) if before is None else tuple(map(operator.add, before, numbers))
    return total


def _rows(values: Values) -> list[Any]:
    return [[name, labels, numbers] for (name, labels), numbers in values.items()]


def _values(rows: list[Any]) -> dict[Series, tuple[float, ...]]:
    return {(name, tuple(labels)): tuple(numbers) for name, labels, numbers in rows}
