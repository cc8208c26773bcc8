"""The decision behind Ray Serve's custom autoscaling policy.

Serve makes one :class:`WorkPolicy` a deployment, inside its controller, and calls it ten times a second; what it raises
would leave the application deploying for ever, so it raises nothing. With no replica running and requests waiting,
Serve does not ask: it starts one replica at once.
"""

from __future__ import annotations

import datetime
import json
import logging
import statistics
import time
from typing import Any

from ray.serve.config import AutoscalingContext

from serve_app.metrics.ray_ledger import open_recorder
from serve_app.metrics.scaling import ScalingMetrics
from serve_app.scaling.decision import Decision, Scaler, Snapshot
from serve_app.scaling.load import BUSY, NUM_REQUESTS, OWED_S, REQUEST_S
from serve_app.scaling.settings import ScalingSettings

logger = logging.getLogger("ray.serve.likeness.scaling")  # below Serve's own, so that it joins the controller's log


class WorkPolicy:
    """A ``policy_function`` for a deployment whose replicas report :mod:`serve_app.scaling.load`.

    The keyword arguments are :class:`serve_app.scaling.settings.ScalingSettings`.
    """

    def __init__(self, **settings: Any) -> None:
        checked = ScalingSettings.model_validate(settings)
        self._scaler = Scaler(checked.rules())
        self._request_s = checked.request_s
        self._metrics: ScalingMetrics | None = None  # begins where the policy is asked, not where it is made

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The wanted number of replicas; and the state that Serve keeps, of which there is none."""
        try:
            decision = self._scaler.decide(self._snapshot(ctx))
            self._tell(ctx, decision)
        except Exception:
            logger.exception("no scaling decision for %s; it stays as it is", ctx.deployment_name)
            return ctx.target_num_replicas, {}
        return decision.num_replicas, {}

    def _snapshot(self, ctx: AutoscalingContext) -> Snapshot:
        raw = ctx.raw_metrics or {}
        owed_s = sum(_latest(raw, OWED_S))
        num_placed = sum(_latest(raw, NUM_REQUESTS))
        told_s = [value for value in _latest(raw, REQUEST_S) if value > 0.0]
        if told_s:
            self._request_s = statistics.fmean(told_s)  # kept for the time when there is no replica to tell
        # Serve's own counts are averages of the last seconds. What replicas have just taken is in them still.
        num_unplaced = max(0.0, min(ctx.total_queued_requests, ctx.total_num_requests - num_placed))
        return Snapshot(
            now_s=time.monotonic(),
            wall=datetime.datetime.now(datetime.UTC),
            num_running=ctx.current_num_replicas,
            num_target=ctx.target_num_replicas,
            min_replicas=ctx.capacity_adjusted_min_replicas,
            max_replicas=ctx.capacity_adjusted_max_replicas,
            owed_s=owed_s + num_unplaced * self._request_s,
            busy=sum(statistics.fmean(point.value for point in series) for series in _series(raw, BUSY)),
            num_requests=num_placed + num_unplaced,
        )

    def _tell(self, ctx: AutoscalingContext, decision: Decision) -> None:
        app_name = ctx.app_name or ""
        if self._metrics is None:
            self._metrics = ScalingMetrics(open_recorder(app_name), ctx.deployment_name)
        self._metrics.decided(decision)
        by = decision.num_replicas - ctx.target_num_replicas
        if not by:
            return
        self._metrics.changed(decision, by)
        line = {
            "event": "scaling",
            "deployment": ctx.deployment_name,
            "application": app_name,
            "from": ctx.target_num_replicas,
            "to": decision.num_replicas,
            "running": ctx.current_num_replicas,
            "cause": decision.cause,
            "reason": decision.reason,
            "owed_s": round(decision.owed_s, 3),
            "arriving": round(decision.arriving, 3),
        }
        logger.info(json.dumps(line, separators=(",", ":")))


def _series(raw: dict[str, Any], name: str) -> list[Any]:
    """A metric's points of every running replica that has reported it."""
    return [series for series in raw.get(name, {}).values() if series]


def _latest(raw: dict[str, Any], name: str) -> list[float]:
    return [float(series[-1].value) for series in _series(raw, name)]
