"""Readiness: the controller's word, the stages' own where it is not enough, and never more often than needed."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import threading
from typing import Any

import pytest
from ray.serve.schema import DeploymentStatus

from serve_app.readiness import MAX_AGE_S, Readiness, told_status
from serve_app.stages import FACE_STAGE, FLUX_REPLICA, INGRESS, StageStarting, StageStatus
from serve_app.starting import StartingWatch

NOW_S = 1_000.0


def deployment(status: str, *states: str, target: int = 1, cold_start_s: float | None = None) -> dict[str, Any]:
    """Serve's details of a deployment, as far as they are read; replicas were asked for 12 s ago."""
    policy = {} if cold_start_s is None else {"policy": {"policy_kwargs": {"cold_start_s": cold_start_s}}}
    replicas = [{"state": state, "start_time_s": NOW_S - 12.0, "node_id": None} for state in states]
    return {
        "status": status,
        "message": "Traceback: /srv/secret.py",
        "target_num_replicas": target,
        "replicas": replicas,
        "deployment_config": {"autoscaling_config": policy},
    }


HEALTHY = deployment("HEALTHY", "RUNNING")


@pytest.mark.parametrize(
    ("details", "is_ready", "is_awake"),
    [
        (deployment("HEALTHY", "RUNNING", "RUNNING"), True, True),
        (deployment("HEALTHY", target=0), True, False),  # asleep
        (deployment("DOWNSCALING", "STOPPING", target=0), True, False),
        (deployment("DOWNSCALING", "STARTING", target=0), True, False),  # not needed any more
        (deployment("UPDATING", "STARTING"), False, False),  # never served yet
        (deployment("UPDATING", "RUNNING", "STARTING"), True, True),
        (deployment("HEALTHY", "RECOVERING"), True, True),  # a new controller
        (deployment("HEALTHY", "PENDING_MIGRATION"), True, True),  # its node is about to go
        (deployment("UNHEALTHY", "RUNNING"), True, True),
        (deployment("UNHEALTHY"), False, False),
        (deployment("UNHEALTHY", "STARTING"), False, False),
        (deployment("UPSCALING", "STARTING"), True, False),  # woken
        (deployment("UPSCALING"), False, False),
        (deployment("DEPLOY_FAILED"), False, False),
    ],
)
def test_what_the_controller_says(details: dict[str, Any], is_ready: bool, is_awake: bool) -> None:
    told = told_status(FLUX_REPLICA, details, wall_s=NOW_S)
    assert (told.is_ready, told.is_awake) == (is_ready, is_awake)
    assert bool(told.reason) != is_awake
    assert "secret" not in told.reason


def test_statuses_are_words_or_serves_own_enumeration() -> None:
    details = deployment("UNHEALTHY") | {"status": DeploymentStatus.UNHEALTHY}
    assert told_status(FLUX_REPLICA, details, wall_s=NOW_S).reason.startswith("unhealthy: ")


def test_a_start_says_for_how_long_and_what_it_waits_for() -> None:
    details = deployment("UPSCALING", "STARTING", cold_start_s=200.0)
    told = told_status(FLUX_REPLICA, details, wall_s=NOW_S)
    assert (told.phase, told.starting_s, told.expected_start_s) == ("waiting for a node", 12.0, 200.0)
    details["replicas"][0]["node_id"] = "abc"
    assert told_status(FLUX_REPLICA, details, wall_s=NOW_S).phase == "loading"


async def answers() -> None:
    """A stage that serves."""


async def hangs() -> None:
    """A stage without a replica: the call waits for one."""
    await asyncio.sleep(60)


async def breaks() -> None:
    """A stage whose engine is closed."""
    raise RuntimeError("closed")


def ask(deployments: Any, face: Any = answers, flux: Any = answers, *, timeout_s: float = 60.0) -> list[bool]:
    end = threading.Event()

    def known() -> Any:
        if deployments == "hangs":
            end.wait()
        return deployments

    async def run() -> tuple[StageStatus, ...]:
        probes = {FACE_STAGE: face, FLUX_REPLICA: flux}
        try:
            return await Readiness(deployments=known, probes=probes, timeout_s=timeout_s).statuses()
        finally:
            end.set()

    statuses = asyncio.run(run())
    assert [status.name for status in statuses] == [INGRESS, FACE_STAGE, FLUX_REPLICA]
    return [status.is_ready for status in statuses]


async def must_not_be_asked() -> None:
    """A stage that sleeps: the call would wake it."""
    raise AssertionError("asked")


def test_a_busy_stage_is_not_asked() -> None:
    assert ask({FACE_STAGE: HEALTHY, FLUX_REPLICA: HEALTHY}, face=hangs, flux=hangs) == [True, True, True]


def test_a_stage_that_sleeps_is_not_asked() -> None:
    """Or load balancers, which ask all the time, would keep a GPU awake all night."""
    asleep = {FACE_STAGE: HEALTHY, FLUX_REPLICA: deployment("HEALTHY", target=0)}
    stopping = {FACE_STAGE: HEALTHY, FLUX_REPLICA: deployment("DOWNSCALING", "STOPPING", target=0)}
    assert ask(asleep, flux=must_not_be_asked) == ask(stopping, flux=must_not_be_asked) == [True, True, True]


def test_a_stage_that_answers_is_ready_where_the_controller_does_not_know_it() -> None:
    assert ask({}) == [True, True, True]
    assert ask(None) == [True, True, True]
    assert ask("hangs", timeout_s=0.5) == [True, True, True]


def test_a_stage_that_does_not_answer_is_not() -> None:
    assert ask({FACE_STAGE: HEALTHY, FLUX_REPLICA: deployment("UPDATING", "STARTING")}) == [True, True, False]
    assert ask({FACE_STAGE: HEALTHY}, flux=hangs, timeout_s=0.5) == [True, True, False]
    assert ask(None, face=breaks) == [True, False, True]


def test_the_controller_is_asked_no_more_often_than_needed() -> None:
    async def run() -> None:
        asked, now_s = 0, 100.0

        def known() -> dict[str, Any]:
            nonlocal asked
            asked += 1
            return {FACE_STAGE: HEALTHY, FLUX_REPLICA: HEALTHY}

        probes = {FACE_STAGE: answers, FLUX_REPLICA: answers}
        readiness = Readiness(deployments=known, probes=probes, clock=lambda: now_s)
        await asyncio.gather(*(readiness.statuses() for _ in range(20)))
        assert asked == 1
        now_s += MAX_AGE_S
        await readiness.statuses()
        assert asked == 2

    asyncio.run(run())


# -- what is told while a stage starts -------------------------------------------------------------------------------


def test_a_controller_that_hangs_takes_one_thread_however_often_it_is_asked() -> None:
    let_go, asked = threading.Event(), []

    def hang() -> None:
        asked.append(1)
        let_go.wait(20.0)

    async def run() -> None:
        probes = {FLUX_REPLICA: answers}
        readiness = Readiness(deployments=hang, probes=probes, timeout_s=0.01, clock=itertools.count().__next__)
        for _ in range(3):
            assert all(status.is_ready for status in await readiness.statuses())
        let_go.set()

    asyncio.run(run())
    assert len(asked) == 1


def test_a_start_counts_from_its_beginning_and_the_next_is_expected_to_take_as_long() -> None:
    ready = StageStatus(name=FLUX_REPLICA, is_ready=True)
    waking = StageStatus(
        name=FLUX_REPLICA, is_ready=True, is_awake=False, phase="loading", starting_s=30.0, expected_start_s=200.0
    )
    now_s, status = 100.0, waking

    async def statuses() -> tuple[StageStatus, ...]:
        return (StageStatus(name=FACE_STAGE, is_ready=True), status)

    async def run() -> None:
        nonlocal now_s, status
        watch = StartingWatch(statuses, clock=lambda: now_s)
        assert await watch.starting() == StageStarting(
            stage=FLUX_REPLICA, elapsed_s=30.0, expected_s=200.0, phase="loading"
        )
        now_s, status = 150.0, ready
        assert await watch.starting() is None
        now_s, status = 500.0, dataclasses.replace(waking, starting_s=None)
        again = await watch.starting()
        assert again is not None
        assert (again.elapsed_s, again.expected_s) == (0.0, 80.0), "what was seen, not what was said"

    asyncio.run(run())
