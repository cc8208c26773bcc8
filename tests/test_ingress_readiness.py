"""Readiness: the controller's word, the stages' own where it is not enough, and never more often than needed."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from ray.serve.schema import DeploymentStatus, DeploymentStatusOverview, DeploymentStatusTrigger

from serve_app.readiness import MAX_AGE_S, Readiness, told_status
from serve_app.stages import FACE_STAGE, FLUX_REPLICA, INGRESS, StageStatus


class Overview:
    """Serve's overview of an application, as far as it is read."""

    def __init__(self, **deployments: DeploymentStatusOverview) -> None:
        self.deployments = deployments


def deployment(status: DeploymentStatus, **replica_states: int) -> DeploymentStatusOverview:
    trigger = DeploymentStatusTrigger.CONFIG_UPDATE_COMPLETED
    return DeploymentStatusOverview(status, trigger, replica_states, "Traceback: /srv/secret.py")


HEALTHY = deployment(DeploymentStatus.HEALTHY, RUNNING=1)


@pytest.mark.parametrize(
    ("status", "replicas", "is_ready"),
    [
        (DeploymentStatus.HEALTHY, {"RUNNING": 2}, True),
        (DeploymentStatus.HEALTHY, {}, True),  # scaled to zero
        (DeploymentStatus.UPDATING, {"STARTING": 1}, False),
        (DeploymentStatus.UPDATING, {"RUNNING": 1, "STARTING": 1}, True),
        (DeploymentStatus.UNHEALTHY, {"RUNNING": 1}, True),
        (DeploymentStatus.UNHEALTHY, {}, False),
        (DeploymentStatus.UPSCALING, {"STARTING": 1}, False),
        (DeploymentStatus.DEPLOY_FAILED, {}, False),
    ],
)
def test_what_the_controller_says(status: DeploymentStatus, replicas: dict[str, int], is_ready: bool) -> None:
    told = told_status(FLUX_REPLICA, Overview(FluxReplica=deployment(status, **replicas)))
    assert told.is_ready == is_ready
    assert bool(told.reason) != is_ready
    assert "secret" not in told.reason


async def answers() -> None:
    """A stage that serves."""


async def hangs() -> None:
    """A stage without a replica: the call waits for one."""
    await asyncio.sleep(60)


async def breaks() -> None:
    """A stage whose engine is closed."""
    raise RuntimeError("closed")


def ask(application: Any, face: Any = answers, flux: Any = answers) -> list[bool]:
    def overview() -> Any:
        if application == "hangs":
            time.sleep(0.3)
        return application

    async def run() -> tuple[StageStatus, ...]:
        readiness = Readiness(application=overview, probes={FACE_STAGE: face, FLUX_REPLICA: flux}, timeout_s=0.05)
        return await readiness.statuses()

    statuses = asyncio.run(run())
    assert [status.name for status in statuses] == [INGRESS, FACE_STAGE, FLUX_REPLICA]
    return [status.is_ready for status in statuses]


def test_a_busy_stage_is_not_asked() -> None:
    assert ask(Overview(FaceStage=HEALTHY, FluxReplica=HEALTHY), face=hangs, flux=hangs) == [True, True, True]


def test_a_stage_that_answers_is_ready_whatever_the_controller_knows() -> None:
    assert ask(Overview()) == [True, True, True]
    assert ask(None) == [True, True, True]
    assert ask("hangs") == [True, True, True]


def test_a_stage_that_does_not_answer_is_not() -> None:
    starting = deployment(DeploymentStatus.UPDATING, STARTING=1)
    assert ask(Overview(FaceStage=HEALTHY, FluxReplica=starting), flux=hangs) == [True, True, False]
    assert ask(None, face=breaks) == [True, False, True]


def test_the_controller_is_asked_no_more_often_than_needed() -> None:
    async def run() -> None:
        asked, now_s = 0, 100.0

        def overview() -> Overview:
            nonlocal asked
            asked += 1
            return Overview(FaceStage=HEALTHY, FluxReplica=HEALTHY)

        probes = {FACE_STAGE: answers, FLUX_REPLICA: answers}
        readiness = Readiness(application=overview, probes=probes, clock=lambda: now_s)
        await asyncio.gather(*(readiness.statuses() for _ in range(20)))
        assert asked == 1
        now_s += MAX_AGE_S
        await readiness.statuses()
        assert asked == 2

    asyncio.run(run())
