"""Replicas that die, through real HTTP; and what their processes hold."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
from pathlib import Path

import pytest

from serve_app.stages import FACE_STAGE, FLUX_REPLICA, INGRESS
from tests.serve.conftest import RunningService, until

pytestmark = pytest.mark.serve


@pytest.mark.parametrize("deployment", [INGRESS, FACE_STAGE, FLUX_REPLICA])
def test_processes_without_a_network_hold_no_torch(service: RunningService, deployment: str) -> None:
    """A fake engine and no CPU encoder: not one of the three needs it, and the ingress never does."""
    assert service.draw().status_code == 200
    pid = service.replica_pid(deployment)
    assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()


def test_a_picture_survives_the_death_of_its_replica(service: RunningService) -> None:
    alone = service.draw(steps=100, seed=5)
    pid = service.replica_pid(FLUX_REPLICA)
    replays = service.metric("likeness_replays_total", stage=FLUX_REPLICA)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        drawing = pool.submit(service.draw, steps=100, seed=5)
        service.wait_for_work(FLUX_REPLICA)
        time.sleep(0.1)  # what is called there has begun to draw now, for almost a second more
        os.kill(pid, signal.SIGKILL)
        response = drawing.result()
    assert response.status_code == 200, response.text
    assert response.content == alone.content
    assert service.metric("likeness_replays_total", stage=FLUX_REPLICA) == replays + 1
    assert service.replica_pids(FLUX_REPLICA).isdisjoint({pid})
    until(lambda: service.client.get("/ready").status_code == 200)


def test_a_reference_survives_the_death_of_the_face_stage(service: RunningService) -> None:
    pid = service.replica_pid(FACE_STAGE)
    os.kill(pid, signal.SIGKILL)
    assert service.draw().status_code == 200
    assert service.replica_pids(FACE_STAGE).isdisjoint({pid})
    until(lambda: service.client.get("/ready").status_code == 200)
