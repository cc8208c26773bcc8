"""Whatever dies under load, no accepted request is lost. docs/guarantees.md says what is promised."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.metrics.ray_ledger import PAUSE_S
from serve_app.stages import FACE_STAGE, FLUX_REPLICA, INGRESS
from tests.asgi import URL
from tests.cluster.conftest import MARKS, Deploy, Machines, is_settled, stage_of
from tests.cluster.faulty import HANG_ONCE, KILL, OUT_OF_MEMORY
from tests.cluster.load import Load, picture_body
from tests.serve.conftest import RunningService, until

pytestmark = MARKS

NUM_CALLERS = 8


TABLE_VARIABLE = "LIKENESS_FAULT_TABLE"
"""Names a file that gets one line of JSON for every fault: for ``benchmarks/cluster.py``."""


@dataclasses.dataclass(kw_only=True)
class Report:
    """One line of the fault table.

    Attributes:
        num_in_flight: requests that were being worked on as the fault came.
        num_sent: requests in all, before and after it.
        num_replayed: runs of a stage that were begun again; those of Serve's proxy are not counted.
        recovered_s: until all replicas were back, and answering.
    """

    fault: str
    num_in_flight: int = 0
    num_sent: int = 0
    num_lost: int = 0
    num_replayed: int = 0
    recovered_s: float = 0.0

    def add_to_table(self) -> None:
        """Write it down where that is asked for."""
        if path := os.environ.get(TABLE_VARIABLE):
            with Path(path).open("a", encoding="utf-8") as table:
                table.write(json.dumps(dataclasses.asdict(self)) + "\n")


@contextlib.contextmanager
def under_load(service: RunningService, fault: str) -> Iterator[Load]:
    """Callers at work; at the end, everybody must have got the picture of the seed."""
    load = Load(f"http://127.0.0.1:{service.port}")
    with load.running(NUM_CALLERS):
        until(lambda: len(load.outcomes) >= NUM_CALLERS)  # warm: every caller has been answered once
        report = Report(fault=fault, num_in_flight=load.num_in_flight)
        replays = service.metric("likeness_replays_total")
        began_s = time.monotonic()
        yield load
        until(lambda: is_settled(service), timeout_s=90)
        report.recovered_s = time.monotonic() - began_s
    report.num_sent, report.num_lost = len(load.outcomes), len(load.lost)
    report.num_replayed = round(service.metric("likeness_replays_total") - replays)
    report.add_to_table()
    assert [(outcome.status, outcome.error) for outcome in load.lost] == []
    assert all(len(each) == 1 for each in load.pictures().values()), "the same seed gave different pictures"


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def one_of(pids: set[int]) -> int:
    return min(pids)


@pytest.mark.parametrize("stage", [FLUX_REPLICA, FACE_STAGE, INGRESS])
def test_a_replica_is_killed(service: RunningService, stage: str) -> None:
    pid = one_of(service.replica_pids(stage))
    with under_load(service, f"{stage} killed") as load:
        killed_s = time.monotonic()
        kill(pid)
        until(lambda: load.num_answered_since(killed_s) > NUM_CALLERS)
        until(lambda: len(service.replica_pids(stage) - {pid}) == 2, timeout_s=60)


def test_the_controller_is_killed(service: RunningService, machines: Machines) -> None:
    (pid,) = machines.controller_pids()
    with under_load(service, "Serve's controller killed") as load:
        kill(pid)
        killed_s = time.monotonic()
        until(lambda: load.num_answered_since(killed_s) > NUM_CALLERS)
        until(lambda: machines.controller_pids() - {pid} != set(), timeout_s=60)
    assert len(service.replica_pids(FLUX_REPLICA)) == 2


def test_a_node_is_killed(service: RunningService, machines: Machines) -> None:
    busy = machines.index_of_one_with(service.replica_pids(FLUX_REPLICA))
    with under_load(service, "GPU node killed") as load:
        killed_s = time.monotonic()
        machines.kill_gpu_node(busy)
        until(lambda: load.num_answered_since(killed_s) > NUM_CALLERS, timeout_s=60)
        until(lambda: len(service.replica_pids(FLUX_REPLICA)) == 2, timeout_s=60)
    machines.add_gpu_node()


def test_a_node_is_drained(service: RunningService, machines: Machines) -> None:
    """As a cloud does that takes a machine back, or a person before maintenance."""
    busy = machines.index_of_one_with(service.replica_pids(FLUX_REPLICA))
    leaving = machines.pids_of(machines.gpu_nodes[busy]) & service.replica_pids(FLUX_REPLICA)
    with under_load(service, "GPU node drained") as load:
        machines.drain_gpu_node(busy)
        until(lambda: leaving.isdisjoint(now := service.replica_pids(FLUX_REPLICA)) and len(now) == 2, timeout_s=60)
        moved_s = time.monotonic()
        machines.kill_gpu_node(busy)
        until(lambda: load.num_answered_since(moved_s) > NUM_CALLERS, timeout_s=60)
        machines.add_gpu_node()


def test_a_step_hangs(service: RunningService, tmp_path: Path) -> None:
    before = service.replica_pids(FLUX_REPLICA)
    with under_load(service, "engine step hangs"):
        prompt = f"{HANG_ONCE} {tmp_path / 'hung'}"
        response = service.client.post(URL, json=picture_body(prompt=prompt))
        assert response.status_code == 200, response.text
    assert len(before & service.replica_pids(FLUX_REPLICA)) == 1, "one of two was replaced"


def test_the_gpu_runs_out_of_memory_for_one_request(service: RunningService) -> None:
    before = service.replica_pids(FLUX_REPLICA)
    with under_load(service, "GPU out of memory in one request"):
        response = service.client.post(URL, json=picture_body(prompt=OUT_OF_MEMORY))
        assert (response.status_code, response.json()["type"]) == (503, "OutOfDeviceMemoryError")
        assert response.headers["retry-after"]
    assert service.replica_pids(FLUX_REPLICA) == before


def test_a_request_that_kills_replicas_is_quarantined_and_takes_nobody_with_it(deploy: Deploy) -> None:
    """One ingress replica, since each counts deaths for itself."""

    def one_entrance(config: dict[str, Any]) -> None:
        stage_of(config, INGRESS)["num_replicas"] = 1

    service = deploy(one_entrance)
    until(lambda: len(service.replica_pids(INGRESS)) == 1)
    with under_load(service, "request that kills its replicas"):
        response = service.client.post(URL, json=picture_body(prompt=KILL))
        assert (response.status_code, response.json()["type"]) == (500, "QuarantinedError"), response.text
        alive = service.replica_pids(FLUX_REPLICA)
        again = service.client.post(URL, json=picture_body(prompt=KILL))
        assert again.json()["type"] == "QuarantinedError"
        assert alive <= service.replica_pids(FLUX_REPLICA), "it was not run again"


def test_clients_that_leave_free_their_places(service: RunningService) -> None:
    """On a busy machine one may leave before its request has come to the ingress: it took no place, counts nowhere."""

    def counted() -> tuple[float, float, float]:
        received, ended = (service.metric(f"likeness_requests_{name}total") for name in ("received_", ""))
        return received, ended, service.metric("likeness_requests_total", outcome="cancelled")

    time.sleep(2 * PAUSE_S)  # reports come after so long
    before = counted()
    with under_load(service, "20 clients leave") as load:
        patience_s = itertools.cycle(0.1 + 0.05 * index for index in range(8))

        def twenty_have_left() -> bool:
            with pytest.raises(httpx.ReadTimeout):
                service.client.post(URL, json=picture_body(steps=100), timeout=next(patience_s))
            return counted()[2] >= before[2] + 20

        until(twenty_have_left)

    def all_ended_and_who_left_was_cancelled() -> bool:
        received, ended, cancelled = (now - then for now, then in zip(counted(), before, strict=True))
        return received == ended == len(load.outcomes) + cancelled

    until(all_ended_and_who_left_was_cancelled)


def test_slow_clients_hold_nobody_up(service: RunningService) -> None:
    """Some send a byte now and then, some don't read their pictures."""
    content = json.dumps(picture_body()).encode()
    head = f"POST {URL} HTTP/1.1\r\nHost: likeness\r\nContent-Type: application/json\r\nContent-Length: {{}}\r\n\r\n"
    with contextlib.ExitStack() as stack:
        connections = []
        for index in range(20):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=20))
            is_reader = index % 2 == 0
            connection.sendall(head.format(len(content)).encode() + (content if is_reader else content[:20]))
            connections.append((connection, is_reader))
        with under_load(service, "20 slow clients") as load:
            began_s = time.monotonic()
            until(lambda: load.num_answered_since(began_s) > 2 * NUM_CALLERS)
        for connection, is_reader in connections:
            if not is_reader:
                connection.sendall(content[20:])
            assert connection.recv(12) == b"HTTP/1.1 200"
