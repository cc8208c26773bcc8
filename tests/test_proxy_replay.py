"""What Serve's proxy is wrapped in: an ingress that dies before it answers is asked again, with the same request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from ray.serve._private.http_util import _apply_middlewares, validate_http_proxy_callback_return
from ray.serve._private.utils import call_function_from_import_path
from starlette.types import Message, Receive, Scope, Send

from serve_app.carried_body import TakeCarriedBody
from serve_app.contract_answers import ErrorBody
from serve_app.proxy_replay import CALLBACK, MAX_RUNS, ReplayUnanswered

BODY = b"0123456789" * 10


class Proxy:
    """Serve's own application: each run reads the body, and dies or answers with it.

    Args:
        num_deaths: so many runs end without a word.
        read: so many parts of the body are read before a death.
        words: parts of an answer that a death may leave behind.
    """

    def __init__(self, num_deaths: int = 0, *, read: int = 100, words: int = 0) -> None:
        self.num_deaths = num_deaths
        self.read = read
        self.words = words
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await TakeCarriedBody(self._run)(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_last = len(self.bodies) < self.num_deaths
        scope["path"] = "changed by the proxy"
        body = b""
        for _ in range(self.read if is_last else 100):
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        if is_last and not self.words:
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if not is_last:
            await send({"type": "http.response.body", "body": body})


def post(app: Callable[..., Any], content: Any = BODY, headers: dict[str, str] | None = None) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://likeness") as client:
            return await client.post("/flux", content=content, headers=headers)

    return asyncio.run(run())


async def in_parts() -> AsyncIterator[bytes]:
    for start in range(0, len(BODY), 10):
        yield BODY[start : start + 10]


def test_a_request_that_is_answered_runs_once() -> None:
    proxy = Proxy()
    assert post(ReplayUnanswered(proxy)).content == BODY
    assert proxy.bodies == [BODY]


@pytest.mark.parametrize("read", [0, 3, 100])
def test_a_replica_that_dies_is_replaced_wherever_it_was(read: int) -> None:
    proxy = Proxy(MAX_RUNS - 1, read=read)
    response = post(ReplayUnanswered(proxy, pause_s=0.0), content=in_parts())
    assert (response.status_code, response.content) == (200, BODY)
    assert len(proxy.bodies) == MAX_RUNS
    assert proxy.bodies[-1] == BODY


def test_what_kills_every_replica_is_refused_in_the_contracts_words() -> None:
    proxy = Proxy(99)
    response = post(ReplayUnanswered(proxy, pause_s=0.0), headers={"X-Request-Id": "mine"})
    answer = ErrorBody.model_validate(response.json())
    assert (response.status_code, answer.type) == (503, "StageUnavailableError")
    assert answer.details.request_id == response.headers["x-request-id"] == "mine"
    assert response.headers["retry-after"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert len(proxy.bodies) == MAX_RUNS


def test_a_body_too_large_to_keep_is_passed_on_and_not_run_again() -> None:
    alive, dying = Proxy(), Proxy(99)
    assert post(ReplayUnanswered(alive, max_kept_bytes=50), content=in_parts()).content == BODY
    assert post(ReplayUnanswered(dying, max_kept_bytes=50), content=in_parts()).status_code == 503
    assert len(dying.bodies) == 1


def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    proxy, sent = Proxy(99, words=1), []

    async def receive() -> Message:
        return {"type": "http.request", "body": BODY}

    async def send(message: Message) -> None:
        sent.append(message["type"])

    asyncio.run(ReplayUnanswered(proxy)({"type": "http", "headers": []}, receive, send))
    assert sent == ["http.response.start"]
    assert len(proxy.bodies) == 1


def test_nothing_is_run_for_a_caller_that_is_gone() -> None:
    messages: list[Message] = [{"type": "http.request", "body": BODY, "more_body": True}, {"type": "http.disconnect"}]
    proxy, sent = Proxy(99), []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(ReplayUnanswered(proxy, pause_s=0.0)({"type": "http", "headers": []}, receive, send))
    assert (len(proxy.bodies), sent) == (1, [])


def test_serve_takes_it_by_its_name() -> None:
    made = validate_http_proxy_callback_return(call_function_from_import_path(CALLBACK))
    proxy = Proxy(1)
    assert post(_apply_middlewares(proxy, made)).content == BODY
    assert len(proxy.bodies) == 2
