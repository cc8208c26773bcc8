"""``Accept: text/event-stream``: what it tells, how it ends, and that it changes nothing for anybody else."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from PIL import Image

from engine.errors import EngineBusyError, EngineStoppedError, NumericalError
from serve_app import data_url, event_stream
from serve_app.contract_answers import ErrorBody, GenerationAnswer, QueuedEvent, StepEvent
from serve_app.events import HEARTBEAT
from serve_app.stages import FLUX_REPLICA, DrawJob, DrawRestarted, DrawResult, OnDrawEvent, StageStarting
from tests.asgi import URL, HeldSteps, Service, body, until, with_service
from tests.sse import EVENTS, Caller, events_of

QUIET_S = 0.01


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits seconds for a heartbeat."""
    monkeypatch.setattr(event_stream, "QUIET_S", QUIET_S)
    monkeypatch.setattr(event_stream, "MAX_SILENCE_S", 3 * QUIET_S)


def test_a_stream_tells_of_every_step_and_ends_with_the_json_answer() -> None:
    async def test(service: Service) -> None:
        plain = await service.draw(headers={"Accept": "application/json"}, steps=5, seed=3)
        response = await service.draw(headers=EVENTS, steps=5, seed=3)
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["cache-control"] == "no-store"
        assert "content-length" not in response.headers
        events = events_of(response.text)
        assert [event.name for event in events] == ["queued", *["step"] * 5, "done"]
        queued, *steps, done = events
        assert QueuedEvent.model_validate(queued.data, strict=True).position == 1
        told = [StepEvent.model_validate(step.data, strict=True) for step in steps]
        assert [(step.step, step.num_steps) for step in told] == [(k, 5) for k in range(1, 6)]
        assert all(step.remaining_s > 0.0 for step in told[:-1])
        assert told[-1].remaining_s == 0.0
        assert {step.preview for step in told} == {None}
        answer = GenerationAnswer.model_validate(done.data, strict=True)
        assert answer.image == plain.json()["image"]
        assert answer.model_dump().keys() == plain.json().keys()
        assert answer.request_id == response.headers["x-request-id"]

    with_service(test)


@pytest.mark.parametrize(
    ("accept", "format_"),
    [
        ("text/event-stream", "JPEG"),
        ("text/event-stream, */*;q=0.1", "JPEG"),
        ("text/event-stream, image/png;q=0.9", "PNG"),
        ("text/event-stream, image/webp;q=0.9, image/jpeg;q=0.2", "WEBP"),
    ],
)
def test_the_last_event_holds_the_picture_type_that_the_header_names_too(accept: str, format_: str) -> None:
    async def test(service: Service) -> None:
        done = events_of((await service.draw(headers={"Accept": accept})).text)[-1]
        picture = data_url.parse(done.data["image"])
        assert picture.media_type == f"image/{format_.lower()}"
        assert Image.open(io.BytesIO(picture.data)).format == format_

    with_service(test)


def test_previews_come_as_often_as_asked_for_and_only_in_streams() -> None:
    async def test(service: Service) -> None:
        response = await service.draw(headers=EVENTS, steps=5, preview_every=2)
        steps = [event.data for event in events_of(response.text) if event.name == "step"]
        assert [step["step"] for step in steps if step["preview"]] == [2, 4]
        preview = data_url.parse(steps[1]["preview"])
        image = Image.open(io.BytesIO(preview.data))
        assert (image.format, image.size) == ("JPEG", (128 // 8, 96 // 8))
        assert (await service.draw(preview_every=1)).status_code == 200
        assert service.stages.drawn[-1].request.preview_every == 0, "nobody would see them"

    with_service(test)


def test_the_workflow_route_streams_as_well() -> None:
    async def test(service: Service) -> None:
        spec = (await service.client.get("/openapi.json")).json()
        graph = spec["paths"]["/workflow"]["post"]["requestBody"]["content"]["application/json"]["example"]
        response = await service.client.post("/workflow", json=graph, headers=EVENTS)
        assert events_of(response.text)[-1].name == "done"

    with_service(test)


@pytest.mark.parametrize(
    ("changes", "error", "status", "type_"),
    [
        ({"width": 1000}, None, 400, "InvalidRequestError"),
        ({"reference_image": "data:image/png;base64,AAAA"}, None, 400, "UnreadableImageError"),
        ({}, EngineBusyError("58 s of work are here", 41.5), 429, "EngineBusyError"),
        ({}, EngineStoppedError("the engine is closed"), 503, "EngineStoppedError"),
        ({}, ZeroDivisionError("secret"), 500, "InternalError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_before_the_first_event_is_answered_as_ever(
    changes: dict[str, Any], error: Exception | None, status: int, type_: str
) -> None:
    async def test(service: Service) -> None:
        service.stages.draw_error = error
        response = await service.draw(headers=EVENTS, **changes)
        assert (response.status_code, response.json()["type"]) == (status, type_)
        assert response.headers["content-type"] == "application/json"
        assert ("retry-after" in response.headers) == (status in (429, 503))
        if isinstance(error, EngineBusyError):
            assert response.headers["retry-after"] == "42"

    with_service(test)


def test_an_error_after_the_first_event_is_the_last_event() -> None:
    async def test(service: Service) -> None:
        async def draw(job: DrawJob, on_event: OnDrawEvent | None = None) -> DrawResult:
            assert on_event is not None
            on_event(DrawRestarted())
            raise NumericalError("the network produced infinite values for this request")

        service.stages.draw = draw  # type: ignore[method-assign]
        response = await service.draw(headers=EVENTS)
        assert response.status_code == 200, "it had begun"
        first, last = events_of(response.text)
        assert (first.name, last.name) == ("restarted", "error")
        assert ErrorBody.model_validate(last.data).type == "NumericalError"
        assert last.data["details"] == {"request_id": response.headers["x-request-id"], "status": 500}
        assert await service.metric("likeness_requests_total", reason="NumericalError", status="500") == 1

    with_service(test)


def test_its_time_limit_ends_a_stream_too() -> None:
    held = HeldSteps()

    async def test(service: Service) -> None:
        last = events_of((await service.draw(headers=EVENTS)).text)[-1]
        assert (last.name, last.data["details"]["status"]) == ("error", 504)
        held.let_go_of_all()
        await until(lambda: service.stages.engine.stats().num_cancelled == 1)

    with_service(test, held=held, limits={"request_timeout_s": 0.5})


def test_comments_fill_the_silence(impatient: None) -> None:
    held = HeldSteps()

    async def test(service: Service) -> None:
        caller = Caller(service=service)
        await until(lambda: caller.received.endswith(2 * HEARTBEAT))
        held.let_go_of_all()
        await caller.ended()
        assert [event.name for event in caller.events] == ["queued", "step", "step", "done"]

    with_service(test, held=held)


def held_drawing(service: Service) -> tuple[asyncio.Event, list[DrawJob]]:
    """Lets drawings wait in front of the replica until the event is set."""
    go, real = asyncio.Event(), service.stages.draw

    async def draw(job: DrawJob, on_event: OnDrawEvent | None = None) -> DrawResult:
        await go.wait()
        return await real(job, on_event)

    service.stages.draw = draw  # type: ignore[method-assign]
    return go, service.stages.drawn


def test_a_stage_that_is_being_started_is_told_of(impatient: None) -> None:
    async def test(service: Service) -> None:
        go, _ = held_drawing(service)
        service.stages.being_started = StageStarting(stage=FLUX_REPLICA, elapsed_s=12.0, expected_s=94.6)
        caller = Caller(service=service)
        await until(lambda: caller.received)
        service.stages.being_started = None
        go.set()
        await caller.ended()
        first, *others = caller.events
        assert first.name == "starting"
        assert first.data["message"] == "starting a replica of FluxReplica: 12 s of about 95 s"
        assert {event.name for event in others} <= {"starting", "queued", "step", "done"}
        assert others[-1].name == "done"

    with_service(test)


def test_a_long_wait_in_front_of_a_busy_service_begins_with_a_comment(impatient: None) -> None:
    async def test(service: Service) -> None:
        go, _ = held_drawing(service)
        caller = Caller(service=service)
        await until(lambda: caller.received)
        assert caller.received.replace(HEARTBEAT, b"") == b""
        go.set()
        await caller.ended()
        assert caller.events[-1].name == "done"

    with_service(test)


def test_other_forms_hear_nothing() -> None:
    async def test(service: Service) -> None:
        heard: list[OnDrawEvent | None] = []
        real = service.stages.draw

        async def draw(job: DrawJob, on_event: OnDrawEvent | None = None) -> DrawResult:
            heard.append(on_event)
            return await real(job, on_event)

        service.stages.draw = draw  # type: ignore[method-assign]
        for accept in ("image/jpeg", "application/json", "*/*"):
            assert (await service.client.post(URL, json=body(), headers={"Accept": accept})).status_code == 200
        assert heard == [None] * 3

    with_service(test)
