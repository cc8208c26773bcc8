"""What goes wrong behind the ingress, and callers that go away."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from engine.errors import EngineBusyError, EngineStoppedError, FaceNotFoundError, OutOfDeviceMemoryError
from serve_app.errors import StageUnavailableError
from tests.asgi import URL, HeldSteps, Service, body, until, with_service


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FaceNotFoundError("no face was found; send another picture"), 400),
        (EngineBusyError("256 requests wait already"), 429),
        (OutOfDeviceMemoryError("it did not fit"), 503),
        (EngineStoppedError("the engine is closed"), 503),
        (StageUnavailableError("a stage can't be reached"), 503),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_expected_failure_is_answered_as_such(error: Exception, status: int) -> None:
    async def test(service: Service) -> None:
        service.stages.draw_error = error
        response = await service.draw()
        assert (response.status_code, response.json()["type"]) == (status, type(error).__name__)
        assert response.json()["error"] == str(error)
        assert ("retry-after" in response.headers) == (status in (429, 503))

    with_service(test)


@pytest.mark.parametrize("stage", ["prepare_error", "draw_error"])
def test_a_bug_is_logged_and_not_shown(stage: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test(service: Service) -> None:
        setattr(service.stages, stage, ZeroDivisionError("/srv/likeness/secret.py token=hunter2"))
        response = await service.draw()
        assert (response.status_code, response.json()["type"]) == (500, "InternalError")
        assert "hunter2" not in response.text
        assert "hunter2" in caplog.text  # the operator sees it
        assert response.json()["details"]["request_id"] in caplog.text
        setattr(service.stages, stage, None)
        assert (await service.draw()).status_code == 200

    with_service(test)


def test_a_bug_in_another_route_is_not_shown_either() -> None:
    async def test(service: Service) -> None:
        async def statuses() -> Any:
            raise ZeroDivisionError("/srv/likeness/secret.py")

        service.stages.statuses = statuses  # type: ignore[method-assign]
        response = await service.client.get("/ready")
        assert (response.status_code, response.json()["type"]) == (500, "InternalError")
        assert "secret" not in response.text

    with_service(test)


def test_a_request_over_its_time_is_ended_and_its_work_dropped() -> None:
    held = HeldSteps()

    async def test(service: Service) -> None:
        response = await service.draw(steps=100)
        assert (response.status_code, response.json()["type"]) == (504, "DeadlineExceededError")
        held.let_go_of_all()
        await until(lambda: service.stages.engine.stats().num_cancelled == 1)
        assert service.stages.engine.stats().num_running == 0

    with_service(test, held=held, limits={"request_timeout_s": 1.0})


Ending = Callable[[], dict[str, Any]]


def says_disconnect() -> dict[str, Any]:
    """How ASGI servers tell that the connection is closed."""
    return {"type": "http.disconnect"}


def breaks() -> dict[str, Any]:
    """How Ray Serve's proxy does, sometimes."""
    raise RuntimeError("the task that reads the connection was cancelled")


async def post_and_leave(service: Service, ending: Ending, *, steps: int, after: Callable[[], bool]) -> list[Any]:
    """Post a request and close the connection after something happened; what was sent back."""
    content = json.dumps(body(steps=steps)).encode()
    messages = [{"type": "http.request", "body": content[:50], "more_body": True}]
    if steps:
        messages.append({"type": "http.request", "body": content[50:], "more_body": False})
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await until(after)
        return ending()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": URL, "query_string": b"", "headers": headers}
    await service.app(scope, receive, send)
    return sent


@pytest.mark.parametrize("ending", [says_disconnect, breaks])
def test_a_caller_that_goes_away_frees_the_engine(ending: Ending) -> None:
    async def test(service: Service) -> None:
        engine = service.stages.engine
        sent = await post_and_leave(service, ending, steps=100, after=lambda: engine.stats().num_steps > 0)
        assert sent[0]["status"] == 499
        await until(lambda: engine.stats().num_cancelled == 1)
        assert engine.stats().num_steps < 100
        assert await service.metric("likeness_requests_total", outcome="cancelled", status="499") == 1

    with_service(test)


@pytest.mark.parametrize("ending", [says_disconnect, breaks])
def test_a_caller_that_goes_away_while_sending_is_no_failure_of_ours(
    ending: Ending, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(service: Service) -> None:
        sent = await post_and_leave(service, ending, steps=0, after=lambda: True)
        assert sent[0]["status"] == 499
        assert await service.metric("likeness_requests_total", outcome="cancelled", status="499") == 1
        assert "failed unexpectedly" not in caplog.text

    with_service(test)


def test_a_server_that_cancels_the_handler_frees_the_engine() -> None:
    async def test(service: Service) -> None:
        drawing = asyncio.create_task(service.draw(steps=100))
        await until(lambda: service.stages.engine.stats().num_steps > 0)
        drawing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drawing
        await until(lambda: service.stages.engine.stats().num_cancelled == 1)
        assert await service.metric("likeness_in_flight") == 0

    with_service(test)


def test_one_line_is_logged_for_each_request_and_no_word_of_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    async def test(service: Service) -> None:
        caplog.set_level(logging.INFO, logger="serve_app.request")
        await service.draw(prompt="swordfish", negative_prompt="marlin", seed=9)
        await service.draw(width=1000, prompt="swordfish")
        lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "serve_app.request"]
        assert [(line["outcome"], line["status"]) for line in lines] == [("ok", 200), ("InvalidRequestError", 400)]
        assert lines[0]["asked"]["seed"] == 9
        assert lines[0]["stages_s"].keys() >= {"face", "queue", "denoise", "compress", "total"}
        assert "swordfish" not in caplog.text
        assert "marlin" not in caplog.text
        assert "base64" not in caplog.text

    with_service(test)
