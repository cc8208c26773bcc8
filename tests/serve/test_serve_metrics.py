"""``/metrics`` through real HTTP: what was counted outlives whoever counted it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from serve_app.metrics.ray_ledger import PAUSE_S
from serve_app.stages import FLUX_REPLICA, INGRESS
from tests.serve.conftest import RunningService, until

pytestmark = pytest.mark.serve

LEFT_OVER = "likeness_requests_received_total", "likeness_requests_total", "likeness_engine_steps_total"


def test_what_was_counted_outlives_who_counted_it(service: RunningService) -> None:
    num_steps = service.metric("likeness_engine_steps_total")
    service.draw(steps=3)
    service.draw(width=1000)
    until(lambda: service.metric("likeness_engine_steps_total") >= num_steps + 3)
    time.sleep(2 * PAUSE_S)  # reports come after so long; what a process has not reported dies with it
    before = {name: service.metric(name) for name in LEFT_OVER}
    assert before["likeness_requests_received_total"] == before["likeness_requests_total"] >= 2
    killed = {deployment: service.replica_pid(deployment) for deployment in (INGRESS, FLUX_REPLICA)}
    for pid in killed.values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(len(service.replica_pids(deployment) - {pid}) == 1 for deployment, pid in killed.items()))
    until(lambda: service.client.get("/ready").status_code == 200)
    assert {name: service.metric(name) for name in LEFT_OVER} == before
    assert service.draw(steps=4).status_code == 200
    until(lambda: service.metric("likeness_engine_steps_total") == before["likeness_engine_steps_total"] + 4)
    assert service.metric("likeness_requests_total") == before["likeness_requests_total"] + 1
    until(lambda: service.metric("likeness_replicas", state="ready") == 4)  # the dead are no longer shown
