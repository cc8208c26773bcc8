"""What Serve's controller counts: what the scaling policy wants, and why."""

from __future__ import annotations

from serve_app.metrics import table
from serve_app.metrics.recorder import Recorder
from serve_app.scaling.decision import Decision


class ScalingMetrics:
    """One deployment's decisions.

    Args:
        deployment: its name.
    """

    def __init__(self, recorder: Recorder, deployment: str) -> None:
        self._recorder = recorder
        self._deployment = deployment

    def decided(self, decision: Decision) -> None:
        """The policy was asked, ten times a second."""
        self._recorder.set(table.WANTED, decision.num_replicas, self._deployment)
        self._recorder.set(table.OWED_SECONDS, decision.owed_s, self._deployment)
        self._recorder.set(table.ARRIVING, decision.arriving, self._deployment)

    def close(self) -> None:
        """Another policy decides from now on. Does not wait: Serve's controller has more to do."""
        self._recorder.close(0.0)

    def changed(self, decision: Decision, by: int) -> None:
        """It wants another number than there is."""
        self._recorder.add(table.DECISIONS, self._deployment, decision.cause, "up" if by > 0 else "down")
