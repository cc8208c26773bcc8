"""Everything that must be refused, in process. ``tests/serve`` sends the same table through real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from tests.asgi import URL, Service, body, with_service
from tests.bad_input import BODIES, FIELDS, LIMITS, PICTURES, BadRequest


@pytest.mark.parametrize("bad", [*FIELDS, *BODIES, *PICTURES], ids=str)
def test_refused(bad: BadRequest) -> None:
    async def test(service: Service) -> None:
        response = await service.client.post(URL, content=bad.content, headers=bad.headers)
        answer = response.json()
        assert (response.status_code, answer["type"]) == (bad.status, bad.type), answer
        assert bad.says in answer["error"]
        assert answer.keys() == {"error", "type", "details"}
        assert answer["details"]["request_id"] == response.headers["x-request-id"]
        assert ("fields" in answer["details"]) == (bad in FIELDS + PICTURES or bad.type == "InvalidRequestError")
        for problem in answer["details"].get("fields", ()):
            assert problem["field"] in problem["problem"] or bad in PICTURES, "the sentence can stand alone"
        assert not service.stages.drawn
        assert bad in PICTURES or not service.stages.prepared, "nothing may be spent on it"
        assert (await service.draw()).status_code == 200

    with_service(test, limits=LIMITS)


async def call(app: Any, *, chunks: list[bytes], headers: dict[str, str]) -> tuple[int, int]:
    """Send a body in chunks over bare ASGI; the status, and how many chunks were asked for."""
    asked = 0
    statuses = []

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked == len(chunks):
            await asyncio.sleep(60)
        asked += 1
        return {"type": "http.request", "body": chunks[asked - 1], "more_body": asked < len(chunks)}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "method": "POST",
        "path": URL,
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    await app(scope, receive, send)
    return statuses[0], asked


def test_a_body_over_the_limit_is_not_read_to_its_end() -> None:
    async def test(service: Service) -> None:
        chunks = [bytes(2**19)] * 100
        status, num_read = await call(service.app, chunks=chunks, headers={"Content-Type": "application/json"})
        assert (status, num_read) == (413, 5)  # 2 MiB allowed, half a MiB each
        declared = {"Content-Type": "application/json", "Content-Length": "50000000"}
        assert await call(service.app, chunks=chunks, headers=declared) == (413, 0)

    with_service(test, limits=LIMITS)


def test_a_body_that_never_ends_is_given_up() -> None:
    async def test(service: Service) -> None:
        response = asyncio.create_task(_send_half(service))
        assert await response == 408

    with_service(test, limits={"body_timeout_s": 0.05})


async def _send_half(service: Service) -> int:
    statuses: list[int] = []
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await asyncio.sleep(60)
        sent = True
        return {"type": "http.request", "body": b'{"prompt": ', "more_body": True}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": URL, "query_string": b"", "headers": headers}
    await service.app(scope, receive, send)
    return statuses[0]


def test_too_many_at_once_are_refused_and_the_others_served() -> None:
    async def test(service: Service) -> None:
        responses = await asyncio.gather(*(service.draw(seed=seed, steps=20) for seed in range(6)))
        statuses = sorted(response.status_code for response in responses)
        assert statuses == [200, 200, 429, 429, 429, 429]
        refused = next(response for response in responses if response.status_code == 429)
        assert refused.headers["retry-after"] == "2"
        assert refused.json()["type"] == "TooManyRequestsError"

    with_service(test, limits={"max_in_flight": 2})


def test_unknown_paths_and_methods_answer_in_the_contracts_form() -> None:
    async def test(service: Service) -> None:
        missing = await service.client.get("/nowhere")
        assert (missing.status_code, missing.json()["type"]) == (404, "UnknownPathError")
        wrong = await service.client.get(URL)
        assert (wrong.status_code, wrong.json()["type"]) == (405, "MethodNotAllowedError")
        assert wrong.headers["allow"] == "POST"

    with_service(test)


def test_the_good_request_of_the_table_is_good() -> None:
    async def test(service: Service) -> None:
        assert (await service.client.post(URL, json=body())).status_code == 200

    with_service(test, limits=LIMITS)
