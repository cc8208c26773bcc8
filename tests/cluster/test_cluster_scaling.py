"""Replicas that come and go on purpose: by the scaling policy, to nothing and back, and by updates. Nobody is lost."""

from __future__ import annotations

import concurrent.futures
import json
import time
from typing import Any

from serve_app.stages import FACE_STAGE, FLUX_REPLICA, INGRESS
from tests.asgi import URL
from tests.cluster.conftest import MARKS, Deploy, is_settled, stage_of
from tests.cluster.load import Load, picture_body
from tests.serve.conftest import RunningService, until

pytestmark = MARKS


def scaled(config: dict[str, Any]) -> None:
    """The scaling of ``serve_config.test.yaml``, with less patience."""
    flux = stage_of(config, FLUX_REPLICA)
    flux["autoscaling_config"] = flux["scaled"]
    del flux["num_replicas"]


def num_running(service: RunningService) -> int:
    return len(service.replica_pids(FLUX_REPLICA))


def check(load: Load) -> None:
    assert [(outcome.status, outcome.error) for outcome in load.lost] == []
    assert all(len(each) == 1 for each in load.pictures().values()), "the same seed gave different pictures"


def test_settings_change_in_place(service: RunningService, deploy: Deploy) -> None:
    before = {stage: service.replica_pids(stage) for stage in (INGRESS, FLUX_REPLICA)}
    cost = float(service.client.post(URL, json=picture_body()).headers["x-cost-usd"])
    assert cost > 0.0

    def dearer(config: dict[str, Any]) -> None:
        stage_of(config, INGRESS)["user_config"] = {"prices": {"default_usd_per_hour": 19.8}}

    deploy(dearer)
    until(lambda: float(service.client.post(URL, json=picture_body()).headers["x-cost-usd"]) > 5 * cost)
    assert {stage: service.replica_pids(stage) for stage in before} == before

    def misspelt(config: dict[str, Any]) -> None:
        stage_of(config, INGRESS)["user_config"] = {"price": {}}

    deploy(misspelt)
    time.sleep(1.0)
    assert float(service.client.post(URL, json=picture_body()).headers["x-cost-usd"]) > 5 * cost, "nothing has changed"
    assert {stage: service.replica_pids(stage) for stage in before} == before


def replays_while_one_is_let_go(service: RunningService, deploy: Deploy, *, within_s: float) -> float:
    """Eight drawings of five seconds on two replicas, one of which is told to go: how many were run again."""

    def shorter(config: dict[str, Any]) -> None:
        stage_of(config, FLUX_REPLICA)["graceful_shutdown_timeout_s"] = within_s

    def fewer(config: dict[str, Any]) -> None:
        shorter(config)
        stage_of(config, FLUX_REPLICA)["num_replicas"] = 1

    deploy(shorter)
    replays = service.metric("likeness_replays_total", stage=FLUX_REPLICA)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        drawings = [pool.submit(service.client.post, URL, json=picture_body(steps=100, seed=s)) for s in range(8)]
        until(lambda: service.metric("likeness_in_flight") == 8)
        time.sleep(0.5)  # all are with the replicas now, for seconds
        deploy(fewer, is_awaited=False)
        assert [drawing.result().status_code for drawing in drawings] == [200] * 8
    until(lambda: num_running(service) == 1, timeout_s=60)
    return service.metric("likeness_replays_total", stage=FLUX_REPLICA) - replays


def test_replicas_that_are_let_go_finish_what_they_have(service: RunningService, deploy: Deploy) -> None:
    assert replays_while_one_is_let_go(service, deploy, within_s=90.0) == 0


def test_what_is_not_finished_in_time_is_run_again(service: RunningService, deploy: Deploy) -> None:
    assert replays_while_one_is_let_go(service, deploy, within_s=0.5) > 0


def test_the_stage_sleeps_wakes_grows_and_sleeps_again(deploy: Deploy) -> None:
    service = deploy(scaled)
    until(lambda: num_running(service) == 0, timeout_s=60)
    ready = service.client.get("/ready").json()
    assert (ready["is_ready"], ready["is_awake"]) == (True, False)
    for _ in range(10):
        assert service.client.get("/ready").status_code == 200
        time.sleep(0.2)
    assert num_running(service) == 0, "to ask whether it sleeps does not wake it"

    events = events_of(service)
    assert num_running(service) == 1, "one request, one replica"
    names = [name for name, _ in events]
    assert names[0] == "starting"
    assert names[-1] == "done"
    start = dict(events)["starting"]
    assert (start["stage"], start["expected_s"]) == (FLUX_REPLICA, 3.0)

    load = Load(f"http://127.0.0.1:{service.port}")
    with load.running(40):
        until(lambda: num_running(service) == 4, timeout_s=90)
        grown_s = time.monotonic()
        until(lambda: load.num_answered_since(grown_s) > 40, timeout_s=60)
    check(load)
    until(lambda: num_running(service) <= 1, timeout_s=60)
    until(lambda: num_running(service) == 0, timeout_s=60)
    assert service.client.get("/ready").json()["is_awake"] is False


def events_of(service: RunningService) -> list[tuple[str, dict[str, Any]]]:
    """The events of one drawing."""
    events, name = [], ""
    with service.client.stream("POST", URL, json=picture_body(), headers={"Accept": "text/event-stream"}) as response:
        for line in response.iter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                events.append((name, json.loads(value)))
    return events


def test_a_request_that_wakes_the_stage_waits_no_longer_than_it_says(deploy: Deploy) -> None:
    service = deploy(scaled)
    until(lambda: num_running(service) == 0, timeout_s=60)
    response = service.client.post(URL, json=picture_body(max_wait_s=0.5))
    assert (response.status_code, response.json()["type"]) == (504, "DeadlineExceededError")
    patient = service.client.post(URL, json=picture_body(max_wait_s=60.0))
    assert patient.status_code == 200


def test_scaling_numbers_change_in_place(deploy: Deploy) -> None:
    service = deploy(scaled)
    until(lambda: num_running(service) == 0, timeout_s=60)
    before = service.replica_pids(INGRESS)

    def warm(config: dict[str, Any]) -> None:
        scaled(config)
        stage_of(config, INGRESS)["user_config"] = {"scaling": {FLUX_REPLICA: {"warm_hours": [{"num_replicas": 2}]}}}

    deploy(warm)
    until(lambda: num_running(service) == 2)
    deploy(scaled)
    until(lambda: num_running(service) == 0, timeout_s=60)
    assert service.replica_pids(INGRESS) == before


def test_an_update_of_everything_under_load(service: RunningService, deploy: Deploy) -> None:
    """Other ``args:``, as a new model version has them: every replica of every stage is replaced."""
    stages = (INGRESS, FACE_STAGE, FLUX_REPLICA)
    before = {stage: service.replica_pids(stage) for stage in stages}

    def updated(config: dict[str, Any]) -> None:
        config["applications"][0]["args"]["engine"]["max_waiting"] = 255

    load = Load(f"http://127.0.0.1:{service.port}")
    with load.running(8):
        until(lambda: len(load.outcomes) >= 8)
        deploy(updated)
        until(
            lambda: all(before[s].isdisjoint(now := service.replica_pids(s)) and len(now) == 2 for s in stages),
            timeout_s=90,
        )
        until(lambda: is_settled(service), timeout_s=60)
        updated_s = time.monotonic()
        until(lambda: load.num_answered_since(updated_s) > 8)
    check(load)
