"""The ledger as a Ray actor of the application, and the thread by which every replica reports to it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import ray
from ray import serve
from ray.exceptions import ActorDiedError, RayError
from ray.experimental import internal_kv  # where Serve's controller keeps its own state; lives as long as the cluster

from serve_app.errors import StageUnavailableError
from serve_app.head_actor import NAMESPACE, head_actor
from serve_app.metrics.ledger import Ledger
from serve_app.metrics.metric import Values
from serve_app.metrics.recorder import Recorder, Report
from serve_app.metrics.table import TABLE
from serve_app.one_thread import OneThread

logger = logging.getLogger(__name__)

HEARTBEAT_S: Final = 1.0
"""A replica reports at least so often."""

PAUSE_S: Final = 0.2
"""And at most so often. What a process counted within this time before it is killed is lost."""

TIMEOUT_S: Final = 5.0
"""How long the ledger may take; milliseconds are usual, a restart of it takes a second or two."""

IDLE_END_S: Final = 900.0
"""A ledger that nobody reports to for so long ends: its application was deleted. Its sums stay with the cluster."""


class _LedgerActor:
    """See :class:`serve_app.metrics.ledger.Ledger`. Every call may be repeated: reports replace those before them."""

    def __init__(self, name: str) -> None:
        self._key = name.encode()
        saved = internal_kv._internal_kv_get(self._key, namespace=NAMESPACE) or b""
        self._ledger = Ledger(clock=time.monotonic, saved=saved.decode())
        self._heard_s = time.monotonic()
        threading.Thread(target=self._end_when_idle, name="idle", daemon=True).start()

    def take(self, report: Report) -> None:
        self._heard_s = time.monotonic()
        self._ledger.take(report)

    def exchange(self, report: Report) -> Values:
        """Nothing is shown that was not written down before."""
        self.take(report)
        sums = self._ledger.sums()
        internal_kv._internal_kv_put(self._key, self._ledger.save().encode(), overwrite=True, namespace=NAMESPACE)
        return sums

    def _end_when_idle(self) -> None:
        myself = ray.get_runtime_context().current_actor
        while time.monotonic() - self._heard_s < IDLE_END_S:
            time.sleep(IDLE_END_S / 10)
        ray.kill(myself)


class RayLedger:
    """One application's ledger, from any process of its cluster; made by whoever asks first.

    Args:
        app_name: the application.
    """

    def __init__(self, app_name: str) -> None:
        # A new version with another table begins anew: sums of unlike buckets would be nonsense.
        shape = [(row.name, row.kind, row.labels, row.buckets) for row in TABLE.values()]
        fingerprint = hashlib.sha256(repr(shape).encode()).hexdigest()[:12]
        self._name = f"ledger-{app_name}-{fingerprint}"
        self._actor: Any = None
        self._reach_soon = OneThread(self._reach)

    def take(self, report: Report) -> None:
        """Hand in a report. Blocks for milliseconds. Raises RayError where the ledger can't be reached."""
        try:
            ray.get(self._reach().take.remote(report), timeout=TIMEOUT_S)
        except ActorDiedError:
            self._actor = None
            raise

    async def exchange(self, report: Report) -> Values:
        """See :class:`serve_app.metrics.ledger.Exchange`."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                actor = await self._reach_soon()
                values: Values = await actor.exchange.remote(report)
                return values
        except (TimeoutError, RayError) as error:
            if isinstance(error, ActorDiedError):
                self._actor = None
            raise StageUnavailableError("the metrics ledger can't be reached; try again shortly") from error

    def _reach(self) -> Any:
        if self._actor is None:
            self._actor = head_actor(_LedgerActor, self._name, self._name)
        return self._actor


class Reporter:
    """A thread that hands in what a recorder counted: soon after something changed, and every now and then.

    A thread, because a replica that loads a model or steps an engine leaves its event loop no time.
    """

    def __init__(self, recorder: Recorder, take: Callable[[Report], None]) -> None:
        self._recorder = recorder
        self._take = take
        self._stopping = threading.Event()
        self._is_failing = False
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Begin reporting."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Report a last time and end; wait no longer for it than this."""
        self._stopping.set()
        self._recorder.changed.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._recorder.changed.wait(HEARTBEAT_S)
            self._report()
            self._stopping.wait(PAUSE_S)
        self._report()

    def _report(self) -> None:
        try:
            self._take(self._recorder.report())
        except RayError as error:
            if not self._is_failing:
                logger.warning("the metrics ledger can't be reached (%s); counting goes on", type(error).__name__)
            self._is_failing = True
        else:
            self._is_failing = False


def open_recorder(app_name: str = "") -> Recorder:
    """A recorder whose counts reach the application's ledger until it is closed.

    Args:
        app_name: the application, for a process that is none of its replicas. A replica's recorder is named as Serve
            names the replica.
    """
    assert ray.is_initialized(), "a process that belongs to no cluster has no ledger to report to"
    source = ""
    if not app_name:
        context = serve.get_replica_context()
        app_name, source = context.app_name, context.replica_id.unique_id
    recorder = Recorder(source)
    reporter = Reporter(recorder, RayLedger(app_name).take)
    recorder.close_with(reporter.close)
    reporter.start()
    return recorder
