"""The decision behind Ray Serve's custom autoscaling policy.

Serve makes one :class:`WorkPolicy` a deployment, inside its controller, and calls it ten times a second. Raising there
breaks more than scaling: from a call, applications stay deploying for ever; from the constructor, the controller cannot
even tell its status any more. So nothing is raised, and what is not decided stays as it is. With no replica running and
requests waiting, Serve does not ask: it starts one replica at once.
"""

from __future__ import annotations

import datetime
import json
import logging
import math
import statistics
import time
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError
from ray.serve.config import AutoscalingContext

from serve_app.metrics.ray_ledger import open_recorder
from serve_app.metrics.scaling import ScalingMetrics
from serve_app.scaling import live
from serve_app.scaling.decision import Decision, Scaler, Snapshot
from serve_app.scaling.load import BUSY, NUM_REQUESTS, OWED_S, REQUEST_S
from serve_app.scaling.settings import ScalingSettings

logger = logging.getLogger("ray.serve.likeness.scaling")  # below Serve's own, so that it joins the controller's log

LOOK_EVERY_S: Final = 1.0
"""How often changed settings are looked for; a look takes a millisecond of Serve's controller."""


class WorkPolicy:
    """A ``policy_function`` for a deployment whose replicas report :mod:`serve_app.scaling.load`.

    The keyword arguments are :class:`serve_app.scaling.settings.ScalingSettings`, and :mod:`serve_app.scaling.live` may
    lay others over them. Where they make no sense, the former ones hold (without any, the number of replicas stays as
    it is), and the controller's log says so; ``likeness check-config`` says it before.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._changes: dict[str, Any] = {}
        self._looked_s = -math.inf
        self._scaler: Scaler | None = None
        self._request_s = 0.0
        self._use(settings)
        self._metrics: ScalingMetrics | None = None  # begins where the policy is asked, not where it is made

    def __del__(self) -> None:
        if self._metrics is not None:
            self._metrics.close()

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The wanted number of replicas; and the state that Serve keeps, of which there is none."""
        try:
            self._look_for_changes(ctx)
            if self._scaler is None:
                return ctx.target_num_replicas, {}
            decision = self._scaler.decide(self._snapshot(ctx))
        except Exception:
            logger.exception("no scaling decision for %s; it stays as it is", ctx.deployment_name)
            return ctx.target_num_replicas, {}
        try:
            self._tell(ctx, decision)
        except Exception:
            logger.exception("a scaling decision for %s could not be counted", ctx.deployment_name)
        return decision.num_replicas, {}

    def _look_for_changes(self, ctx: AutoscalingContext) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now_s
        changes = live.changes_for(ctx.app_name or "", ctx.deployment_name)
        if changes != self._changes:
            self._changes = changes
            self._use({**self._settings, **changes})

    def _use(self, settings: Mapping[str, Any]) -> None:
        """From now on these settings; what is remembered of the past stays."""
        try:
            checked = ScalingSettings.model_validate(settings)
        except ValidationError:
            logger.exception("the scaling policy's settings can't be used. Run likeness check-config")
            return
        if self._scaler is None:
            self._scaler = Scaler(checked.rules())
        self._scaler.rules = checked.rules()
        self._request_s = checked.request_s

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
        if not self._metrics.decided(decision, ctx.target_num_replicas):
            return
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
