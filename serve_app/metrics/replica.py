"""What every replica says of itself: that it is there, and what its start took."""

from __future__ import annotations

import time
from collections.abc import Mapping

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
