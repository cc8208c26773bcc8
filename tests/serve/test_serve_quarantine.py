"""A request that kills every replica it meets, on a real Ray: it ends, and so do the deaths."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from serve_app.quarantine import MAX_DEATHS
from serve_app.stages import FLUX_REPLICA
from tests.serve.conftest import SURELY_AT_WORK_S, RunningService, until

pytestmark = pytest.mark.serve


@contextlib.contextmanager
def deadly(service: RunningService) -> Iterator[set[int]]:
    """Kills every Flux replica as soon as it works on something; the processes that were killed."""
    killed: set[int] = set()
    stop = threading.Event()
    idle_since_s: dict[int, float] = {}

    def seem_idle_for_long() -> set[int]:
        """What waits for a replica is sent to it as soon as it is up, also where its title does not show it."""
        now_s, idle = time.monotonic(), service.idle_pids(FLUX_REPLICA)
        for pid in idle_since_s.keys() - idle:
            del idle_since_s[pid]
        for pid in idle:
            idle_since_s.setdefault(pid, now_s)
        return {pid for pid, since_s in idle_since_s.items() if now_s - since_s > SURELY_AT_WORK_S}

    def kill() -> None:
        while not stop.wait(0.02):
            for pid in (service.busy_pids(FLUX_REPLICA) | seem_idle_for_long()) - killed:
                killed.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def test_a_request_that_kills_replicas_ends_and_is_not_tried_again(service: RunningService) -> None:
    poison: dict[str, Any] = {"prompt": "poison", "steps": 100}
    replays = service.metric("likeness_replays_total", stage=FLUX_REPLICA)
    with deadly(service) as killed:
        first = service.draw(**poison)
    assert (first.status_code, first.json()["type"]) == (500, "QuarantinedError"), first.text
    assert "3 replicas ended" in first.json()["error"]
    assert "retry-after" not in first.headers
    assert len(killed) >= MAX_DEATHS  # more where one was killed that only said how it is
    assert service.metric("likeness_replays_total", stage=FLUX_REPLICA) == replays + MAX_DEATHS - 1
    until(lambda: len(service.replica_pids(FLUX_REPLICA) - killed) == 1)
    survivors = service.replica_pids(FLUX_REPLICA) - killed
    with concurrent.futures.ThreadPoolExecutor() as pool:
        again = list(pool.map(lambda seed: service.draw(**poison, seed=seed), range(8)))
    assert {answer.json()["type"] for answer in again} == {"QuarantinedError"}
    assert service.draw(prompt="no poison", steps=100).status_code == 200
    assert service.replica_pids(FLUX_REPLICA) == survivors
    until(lambda: service.client.get("/ready").status_code == 200)
