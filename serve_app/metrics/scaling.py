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
        self._num_wanted: int | None = None

    def decided(self, decision: Decision, num_target: int) -> bool:
        """The policy was asked, as it is ten times a second. True where it has changed its mind.

        Args:
            num_target: what Serve aims at. That may lag behind what is wanted, so a change is counted against what was
                wanted before, and against this at first only.
        """
        before = num_target if self._num_wanted is None else self._num_wanted
        self._num_wanted = decision.num_replicas
        if decision.num_replicas != before:
            direction = "up" if decision.num_replicas > before else "down"
            self._recorder.add(table.DECISIONS, self._deployment, decision.cause, direction)
        self._recorder.set(table.WANTED, decision.num_replicas, self._deployment)
        self._recorder.set(table.OWED_SECONDS, decision.owed_s, self._deployment)
        self._recorder.set(table.ARRIVING, decision.arriving, self._deployment)
        return decision.num_replicas != before

    def close(self) -> None:
        """Another policy decides from now on. Does not wait: Serve's controller has more to do."""
        self._recorder.close(0.0)
