"""What a replica counts about itself: that it is there, what its start took, what its engine did."""

from __future__ import annotations

import time
from collections.abc import Mapping

from engine.protocol import ImageEngine
from serve_app.metrics import table
from serve_app.metrics.recorder import Recorder


class ReplicaStart:
    """A replica from its constructor until it can serve.

    Args:
        deployment: whose replica it is.
    """

    def __init__(self, recorder: Recorder, deployment: str) -> None:
        self._recorder = recorder
        self._deployment = deployment
        self._began_s = time.monotonic()
        recorder.set(table.REPLICAS, 1, deployment, "starting")

    def done(self, stages_s: Mapping[str, float] | None = None) -> None:
        """It can serve now; ``stages_s`` says what the time went into."""
        for stage, seconds in {**(stages_s or {}), "total": time.monotonic() - self._began_s}.items():
            self._recorder.observe(table.COLD_START_SECONDS, seconds, self._deployment, stage)
        self._recorder.set(table.REPLICAS, 0, self._deployment, "starting")
        self._recorder.set(table.REPLICAS, 1, self._deployment, "ready")


def follow_engine(recorder: Recorder, engine: ImageEngine, device_name: str) -> None:
    """Let every report hold what the engine did by then, also for requests whose results nobody took."""

    def refresh() -> None:
        stats = engine.stats()
        recorder.follow(table.ENGINE_ENDED, "finished", total=stats.num_finished)
        recorder.follow(table.ENGINE_ENDED, "failed", total=stats.num_failed)
        recorder.follow(table.ENGINE_ENDED, "cancelled", total=stats.num_cancelled)
        recorder.follow(table.ENGINE_STEPS, total=stats.num_steps)
        recorder.follow(table.ENGINE_SAMPLE_STEPS, total=stats.num_sample_steps)
        recorder.follow(table.DEVICE_SECONDS, device_name, total=stats.device_s)
        recorder.set(table.ENGINE_WAITING, stats.num_waiting)
        recorder.set(table.ENGINE_RUNNING, stats.num_running)
        recorder.set(table.QUEUED_SECONDS, stats.queued_device_s)

    recorder.refresh_with(refresh)
