"""A small body travels with its request from Serve's proxy to the ingress, and however it comes, it arrives once."""

from __future__ import annotations

import asyncio
import itertools
import pickle
from collections.abc import Sequence

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from serve_app.carried_body import MAX_CARRIED_BYTES, Arriving, TakeCarriedBody
from serve_app.proxy_replay import ReplayUnanswered

BODY = b"0123456789" * 10
DISCONNECT: Message = {"type": "http.disconnect"}


def post(length: str | None = str(len(BODY)), **headers: str) -> Scope:
    named = headers if length is None else {"content-length": length, **headers}
    return {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in named.items()]}


def part(body: bytes, *, is_last: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": not is_last}


class Caller:
    """Sends what it is given, then nothing more."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.unsent = list(messages)

    async def receive(self) -> Message:
        if not self.unsent:
            await asyncio.Event().wait()
        return self.unsent.pop(0)


async def told_to_the_ingress(arriving: Arriving) -> tuple[list[Message], bool]:
    """What an application behind :class:`TakeCarriedBody` receives; and whether the body came with the head."""
    heard: list[Message] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        while not heard or heard[-1].get("more_body"):
            heard.append(await receive())

    async def unused(message: Message) -> None:
        raise AssertionError(message)

    scope = pickle.loads(pickle.dumps(arriving.scope))  # as it travels
    is_carried = scope.keys() > {"type", "headers"}
    await TakeCarriedBody(application)(scope, arriving.receive, unused)
    return heard, is_carried


def arrive(scope: Scope, messages: Sequence[Message], max_wait_s: float = 0.05) -> tuple[list[Message], bool]:
    async def run() -> tuple[list[Message], bool]:
        arriving = Arriving(scope, Caller(messages).receive)
        await arriving.read_ahead(max_wait_s)
        return await asyncio.wait_for(told_to_the_ingress(arriving), timeout=30)

    return asyncio.run(run())


@pytest.mark.parametrize("cuts", [(), (0,), (1, 50), (100,)])
def test_a_small_body_comes_with_the_head(cuts: tuple[int, ...]) -> None:
    edges = (0, *cuts, len(BODY))
    pieces = [BODY[start:end] for start, end in itertools.pairwise(edges)]
    messages = [part(piece, is_last=False) for piece in pieces[:-1]] + [part(pieces[-1])]
    assert arrive(post(), messages) == ([part(BODY)], True)


@pytest.mark.parametrize(
    "scope",
    [
        post(length=None),
        post(length=str(MAX_CARRIED_BYTES + 1)),
        post(length="0"),
        post(length="-1"),
        post(length="9" * 5000),
        post(expect="100-continue"),
    ],
    ids=["chunked", "large", "empty", "negative", "absurd", "asks first"],
)
def test_another_body_is_left_to_who_asks_for_it(scope: Scope) -> None:
    async def unread() -> None:
        caller = Caller([part(BODY)])
        await Arriving(scope, caller.receive).read_ahead()
        assert caller.unsent, "nobody asked for it yet"

    asyncio.run(unread())
    assert arrive(scope, [part(BODY)]) == ([part(BODY)], False)


def test_a_body_that_comes_late_is_waited_for_by_the_ingress() -> None:
    async def run() -> None:
        rest = asyncio.Event()
        messages = [part(BODY[:10], is_last=False), part(BODY[10:])]

        async def receive() -> Message:
            if len(messages) == 1:
                await rest.wait()
            return messages.pop(0)

        arriving = Arriving(post(), receive)
        await arriving.read_ahead(max_wait_s=0.01)
        rest.set()
        heard, is_carried = await told_to_the_ingress(arriving)
        assert (b"".join(message["body"] for message in heard), is_carried) == (BODY, False)

    asyncio.run(run())


def test_a_caller_that_leaves_within_its_body_is_told_as_before() -> None:
    heard, is_carried = arrive(post(), [part(BODY[:10], is_last=False), DISCONNECT])
    assert (heard, is_carried) == ([part(BODY[:10], is_last=False), DISCONNECT], False)


def test_who_leaves_after_the_body_is_heard() -> None:
    async def run() -> None:
        arriving = Arriving(post(), Caller([part(BODY), DISCONNECT]).receive)
        await arriving.read_ahead()
        heard: list[Message] = []

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            heard.extend([await receive(), await receive()])

        async def unused(message: Message) -> None:
            raise AssertionError(message)

        await TakeCarriedBody(application)(arriving.scope, arriving.receive, unused)
        assert heard == [part(BODY), DISCONNECT]

    asyncio.run(run())


def test_a_replay_carries_the_body_again() -> None:
    """The ingress that died had taken it; the next run gets the same."""
    seen: list[bytes] = []

    async def dies_once(scope: Scope, receive: Receive, send: Send) -> None:
        async def ingress(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(await Request(scope, receive).body())
            if len(seen) == 2:
                await PlainTextResponse(seen[-1])(scope, receive, send)

        await TakeCarriedBody(ingress)(pickle.loads(pickle.dumps(scope)), receive, send)

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    caller = Caller([part(BODY)])
    asyncio.run(ReplayUnanswered(dies_once, pause_s=0.0)(post(), caller.receive, send))
    assert seen == [BODY, BODY]
    assert (sent[0]["status"], sent[1]["body"]) == (200, BODY)
