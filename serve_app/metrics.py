"""What one ingress replica counts, in the Prometheus text format.

Every series carries the ``replica`` it comes from, so that the series of several ingress replicas never overwrite each
other and sums over them are true. Labels take a handful of values each; nothing a caller writes becomes a label.

Seconds, dollars and pictures are counters, so that rates and averages over any window are exact.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from serve_app.stages import DrawResult, FaceResult

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_STAGE_BUCKETS_S: Final = (
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    3.0,
    5.0,
    8.0,
    12.0,
    20.0,
    40.0,
    80.0,
    160.0,
)
"""From a cached face to a long queue; dense between 1 and 12 seconds, where a picture's time is decided."""


class IngressMetrics:
    """The table of metrics, and one method for each thing that happens."""

    def __init__(self, replica: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, that nothing reads
        self._registry = CollectorRegistry()
        self._replica = replica
        self._requests = self._counter(
            "requests", "Picture requests by outcome: ok, cancelled, or the error's class.", "outcome", "status"
        )
        self._stage_seconds = Histogram(
            "likeness_stage_seconds",
            "Wall-clock seconds of finished requests by stage; total is from the first byte to the answer.",
            ("stage", "replica"),
            buckets=_STAGE_BUCKETS_S,
            registry=self._registry,
        )
        self._cost = self._counter("cost_usd", "US dollars that finished requests were charged.")
        self._charged = self._counter("device_seconds_charged", "Device seconds that finished requests were charged.")
        self._device = self._counter("device_seconds", "Seconds the devices were busy, whoever for.", "device")
        self._images = self._counter("images", "Pictures sent, by form.", "form")
        self._pixels = self._counter("image_pixels", "Pixels of the pictures sent, at the requested size.")
        self._faces = self._counter("faces", "Prepared references by result.", "result", "cached")
        self._steps = self._counter("engine_steps", "Forward passes of a whole batch.")
        self._sample_steps = self._counter("engine_sample_steps", "Steps summed over the requests of every batch.")
        self._turned_away = self._counter("turned_away", "Requests refused at the door, by reason.", "reason")
        self._client_requests = self._counter(
            "client_requests", "Requests of clients with API keys by client and HTTP status.", "client", "status"
        )
        self._client_device = self._counter(
            "client_device_seconds", "Device seconds that clients with API keys were charged.", "client"
        )
        self._limits_lost = self._counter("limits_lost", "Times the shared limits could not be reached.")
        self._replays = self._counter("replays", "Requests run again after a stage died under them.", "stage")
        self._in_flight = Gauge(
            "likeness_in_flight", "Picture requests in this replica now.", ("replica",), registry=self._registry
        ).labels(replica)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"likeness_{name}", text, (*labels, "replica"), registry=self._registry)

    def entered(self) -> None:
        """A picture request came in."""
        self._in_flight.inc()

    def left(self, *, outcome: str, status: int) -> None:
        """It ended. ``status`` 499 (nginx's) stands for a caller that went away."""
        self._in_flight.dec()
        self._requests.labels(outcome, str(status), self._replica).inc()

    def face(self, result: FaceResult) -> None:
        """The face stage answered."""
        kind = "found" if result.box is not None else ("fallback" if result.warning else "whole")
        self._faces.labels(kind, str(result.is_cached).lower(), self._replica).inc()

    def drawn(self, result: DrawResult, *, cost_usd: float, num_pixels: int, form: str) -> None:
        """A picture was drawn."""
        self._cost.labels(self._replica).inc(cost_usd)
        self._charged.labels(self._replica).inc(result.device_s)
        self._device.labels(result.device_name, self._replica).inc(result.work.device_s)
        self._images.labels(form, self._replica).inc()
        self._pixels.labels(self._replica).inc(num_pixels)
        self._steps.labels(self._replica).inc(result.work.num_steps)
        self._sample_steps.labels(self._replica).inc(result.work.num_sample_steps)

    def stage(self, name: str, seconds: float) -> None:
        """A stage of a finished request took so long."""
        self._stage_seconds.labels(name, self._replica).observe(seconds)

    def replayed(self, stage: str) -> None:
        """A request was sent again to a stage that had died."""
        self._replays.labels(stage, self._replica).inc()

    def turned_away(self, reason: str) -> None:
        """A request was refused at the door."""
        self._turned_away.labels(reason, self._replica).inc()

    def client_served(self, client: str, *, status: int, device_s: float) -> None:
        """A request of a client with a key ended; ``status`` 0 where nothing was answered."""
        self._client_requests.labels(client, str(status), self._replica).inc()
        self._client_device.labels(client, self._replica).inc(device_s)

    def limits_lost(self) -> None:
        """The shared limits could not be reached; this replica counts alone for a while."""
        self._limits_lost.labels(self._replica).inc()

    def render(self) -> bytes:
        """All series in the text format."""
        return generate_latest(self._registry)
