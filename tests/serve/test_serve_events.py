"""Event streams through real HTTP, Ray's proxy and two handles: as they happen, to the end, or not at all."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serve_app.stages import FLUX_REPLICA
from tests.asgi import URL, body
from tests.serve.conftest import RunningService, until
from tests.sse import EVENTS, Event, events_of

pytestmark = pytest.mark.serve

NUM_LEAVING = 24


@contextlib.contextmanager
def streaming(service: RunningService, **changes: Any) -> Iterator[Iterator[Event]]:
    """A stream's events, one by one as they arrive; the connection closes with the block."""
    with service.client.stream("POST", URL, json=body(**changes), headers=EVENTS) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream"
        yield _events(response)


def _events(response: httpx.Response) -> Iterator[Event]:
    text = ""
    for part in response.iter_text():
        text += part
        *blocks, text = text.split("\n\n")
        for block in blocks:
            yield from events_of(block + "\n\n")
    assert not text


def test_a_stream_tells_of_every_step_and_ends_with_the_json_answer(service: RunningService) -> None:
    with streaming(service, steps=20, seed=3, preview_every=10) as events:
        first = next(events)
        assert first.name == "queued"
        assert first.data["predicted_device_s"] == pytest.approx(0.2)
        *steps, done = events
    assert [(event.name, event.data["step"]) for event in steps] == [("step", k) for k in range(1, 21)]
    assert [event.data["step"] for event in steps if event.data["preview"]] == [10, 20]
    plain = service.draw({"Accept": "application/json"}, steps=20, seed=3).json()
    assert done.data["image"] == plain["image"]
    assert done.data.keys() == plain.keys()


def test_events_arrive_as_they_happen_and_callers_that_leave_free_the_engine(service: RunningService) -> None:
    cancelled = service.metric("likeness_requests_total", outcome="cancelled")
    dropped = service.metric("likeness_engine_requests_total", outcome="cancelled")
    before = service.metric("likeness_engine_sample_steps_total")

    def leave_after(num_events: int) -> list[str]:
        with streaming(service, steps=100) as events:
            return [next(events).name for _ in range(num_events)]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for num_events, names in enumerate(pool.map(leave_after, range(1, NUM_LEAVING + 1)), start=1):
            assert names == ["queued", *["step"] * (num_events - 1)]
    until(lambda: service.metric("likeness_requests_total", outcome="cancelled") == cancelled + NUM_LEAVING)
    until(lambda: service.metric("likeness_engine_requests_total", outcome="cancelled") == dropped + NUM_LEAVING)
    num_steps = service.metric("likeness_engine_sample_steps_total") - before
    assert 0 < num_steps < 100 * NUM_LEAVING * 3 / 4, "each would have taken 100 steps"
    until(lambda: service.metric("likeness_in_flight") == 0)
    assert service.draw(EVENTS).status_code == 200


def test_a_refusal_keeps_its_status(service: RunningService) -> None:
    response = service.draw(EVENTS, steps=100, max_wait_s=0.3)
    assert (response.status_code, response.json()["type"]) == (504, "DeadlineExceededError")
    assert service.draw(EVENTS, width=1000).status_code == 400


def test_a_stream_survives_the_death_of_its_replica(service: RunningService) -> None:
    alone = service.draw({"Accept": "application/json"}, steps=60, seed=5).json()
    pid = service.replica_pid(FLUX_REPLICA)
    with streaming(service, steps=60, seed=5) as events:
        assert next(events).name == "queued"
        assert next(events).name == "step"
        os.kill(pid, signal.SIGKILL)
        told = list(events)
    names = [event.name for event in told]
    restarted = names.index("restarted")
    assert set(names[:restarted]) <= {"step"}
    after = [name for name in names[restarted + 1 :] if name != "starting"]
    assert after == ["queued", *["step"] * 60, "done"]
    assert told[-1].data["image"] == alone["image"]
    until(lambda: service.client.get("/ready").status_code == 200)
