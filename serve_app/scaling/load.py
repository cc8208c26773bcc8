"""What a replica tells about its load, for :mod:`serve_app.scaling.policy` to add up. Plain Python.

Both stages speak of seconds of one replica. A GPU's work is known from the engine's cost model; the face stage's is its
requests times what one has taken so far.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

OWED_S: Final = "owed_s"
"""Work that is here, waiting and running, in seconds of this replica."""
BUSY: Final = "busy"
"""Share of the time since the last report that it worked, 0 to 1."""
NUM_REQUESTS: Final = "num_requests"
"""Requests that are here, waiting and running."""
REQUEST_S: Final = "request_s"
"""What a request has taken so far on average, in seconds of this replica; 0 before the first has ended."""


class LoadReporter:
    """Turns counters since the start into the report. One caller, again and again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told_s = clock()
        self._told_done_s = 0.0

    def report(self, *, owed_s: float, done_s: float, num_requests: int, num_done: int) -> dict[str, float]:
        """The report, as Serve's ``record_autoscaling_stats`` wants it.

        Args:
            owed_s: work that is here, in seconds of this replica.
            done_s: seconds it has worked since its start.
            num_requests: requests that are here.
            num_done: requests that have ended since its start.
        """
        now_s = self._clock()
        elapsed_s = now_s - self._told_s
        busy = min(1.0, (done_s - self._told_done_s) / elapsed_s) if elapsed_s > 0.0 else 0.0
        self._told_s, self._told_done_s = now_s, done_s
        request_s = done_s / num_done if num_done else 0.0
        # Plain floats: Serve turns reports off for good at the first value of another type.
        return {
            OWED_S: float(owed_s),
            BUSY: float(busy),
            NUM_REQUESTS: float(num_requests),
            REQUEST_S: float(request_s),
        }


class WorkClock:
    """How long a replica has worked, where requests overlap: the time with at least one of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reporter = LoadReporter(clock)
        self._lock = threading.Lock()
        self._num_here = 0
        self._num_done = 0
        self._done_s = 0.0
        self._since_s = 0.0

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Around the work of one request."""
        with self._lock:
            self._advance()
            self._num_here += 1
        try:
            yield
        finally:
            with self._lock:
                self._advance()
                self._num_here -= 1
                self._num_done += 1

    def report(self) -> dict[str, float]:
        """See :meth:`LoadReporter.report`."""
        with self._lock:
            self._advance()
            request_s = self._done_s / self._num_done if self._num_done else 0.0
            return self._reporter.report(
                owed_s=self._num_here * request_s,
                done_s=self._done_s,
                num_requests=self._num_here,
                num_done=self._num_done,
            )

    def _advance(self) -> None:
        now_s = self._clock()
        if self._num_here:
            self._done_s += now_s - self._since_s
        self._since_s = now_s
