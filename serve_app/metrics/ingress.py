"""What the ingress counts: everything that is true of a request as its caller sees it, once each."""

from __future__ import annotations

import time
from collections.abc import Iterable

from engine.request import ImageRequest
from serve_app.metrics import table
from serve_app.metrics.ledger import Exchange, Ledger, LocalExchange
from serve_app.metrics.page import render
from serve_app.metrics.recorder import Recorder
from serve_app.stages import DrawResult, FaceResult, StageStatus


class IngressMetrics:
    """One method for each thing that happens to a request; and the page of the whole application.

    Args:
        recorder: counts for this process.
        exchange: where the sums of all processes are; without one, this process is the application.
    """

    def __init__(self, recorder: Recorder | None = None, exchange: Exchange | None = None) -> None:
        self._recorder = recorder or Recorder()
        self._exchange = exchange or LocalExchange(Ledger(clock=time.monotonic))
        self._num_in_flight = 0

    def entered(self) -> None:
        """A picture request came in."""
        with self._recorder.at_once():
            self._num_in_flight += 1
            self._recorder.add(table.RECEIVED)
            self._recorder.set(table.IN_FLIGHT, self._num_in_flight)

    def left(self, *, outcome: str, status: int) -> None:
        """It ended; ``outcome`` is ``ok``, ``cancelled`` or the error's class."""
        with self._recorder.at_once():
            self._num_in_flight -= 1
            self._recorder.add(table.REQUESTS, *table.outcome_of(outcome, status))
            self._recorder.set(table.IN_FLIGHT, self._num_in_flight)

    def face(self, result: FaceResult) -> None:
        """The face stage answered."""
        kind = "found" if result.box is not None else ("fallback" if result.warning else "whole")
        self._recorder.add(table.FACES, kind, str(result.is_cached).lower())

    def charged(self, result: DrawResult, *, cost_usd: float) -> None:
        """A picture was drawn, to be sent or to choose from."""
        self._recorder.add(table.COST_USD, by=cost_usd)
        self._recorder.add(table.CHARGED_SECONDS, by=result.device_s)
        self._recorder.observe(table.STAGE_SECONDS, result.stages.text_s, "text")
        self._recorder.observe(table.STAGE_SECONDS, result.stages.vision_s, "vision")

    def sent(self, asked: ImageRequest, *, form: str, similarity: float | None) -> None:
        """A picture is the answer; ``similarity`` to its reference where that was measured."""
        if similarity is not None:
            self._recorder.observe(table.IDENTITY_SCORE, similarity)
        self._recorder.add(table.IMAGES, form)
        self._recorder.add(table.PIXELS, by=asked.width_px * asked.height_px)
        self._recorder.add(table.STEPS_SENT, by=asked.num_steps)

    def stage(self, name: str, seconds: float) -> None:
        """A stage of a finished request took so long."""
        self._recorder.observe(table.STAGE_SECONDS, seconds, name)

    def replayed(self, stage: str) -> None:
        """A request was sent again to a stage that had died."""
        self._recorder.add(table.REPLAYS, stage)

    def turned_away(self, reason: str) -> None:
        """A request was refused at the door."""
        self._recorder.add(table.TURNED_AWAY, reason)

    def client_served(self, client: str, *, status: int, device_s: float) -> None:
        """A request of a client with a key ended; ``status`` 0 where nothing was answered."""
        self._recorder.add(table.CLIENT_REQUESTS, client, _outcome(status))
        self._recorder.add(table.CLIENT_SECONDS, client, by=device_s)

    def limits_lost(self) -> None:
        """The shared limits could not be reached; this replica counts alone for a while."""
        self._recorder.add(table.LIMITS_LOST)

    async def page(self, statuses: Iterable[StageStatus]) -> bytes:
        """All that the application counted, in the Prometheus text format.

        Args:
            statuses: how every stage is now.

        Raises:
            StageUnavailableError: the sums can't be had; better none than one that sinks.
        """
        values = dict(await self._exchange(self._recorder.report()))
        for status in statuses:
            values[table.STAGE_READY.name, (status.name,)] = (float(status.is_ready),)
        return render(table.TABLE.values(), values)


def _outcome(status: int) -> str:
    if not status or status == table.CLIENT_GONE_STATUS:
        return table.CANCELLED
    return "ok" if status < 400 else "refused" if status < 500 else "failed"
