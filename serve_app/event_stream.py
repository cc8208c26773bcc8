"""Server-sent events (WHATWG HTML, section 9.2): what a request's road tells, then its answer as the last event.

Nothing is sent before there is something to tell, so that whatever is refused early keeps its status and its JSON body.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.events import HEARTBEAT, drawing_event, last_event
from serve_app.negotiation import EVENT_STREAM
from serve_app.stages import DrawEvent, OnDrawEvent, StageStarting

QUIET_S: Final = 2.0
"""After so long without an event it is asked whether a stage is being started; where none is, a comment keeps proxies
from taking the connection for dead. Theirs usually wait a minute."""

MAX_SILENCE_S: Final = 10.0
"""The first event of a busy engine comes with its next step; who waits longer waits in front of it. From then on
comments are sent, and an error is an event."""

HEADERS: Final = {
    "Content-Type": EVENT_STREAM,
    "Cache-Control": "no-store",  # somebody's face
    "X-Accel-Buffering": "no",  # nginx would collect events otherwise
    "Vary": "Accept",
}

Starting = Callable[[], Awaitable[StageStarting | None]]
Answering = Callable[[OnDrawEvent], Coroutine[Any, Any, Response]]
"""Works out an answer in JSON, telling meanwhile how it goes."""


async def answer_with_events(answering: Answering, starting: Starting) -> Response:
    """The answer itself where it is an error and nothing was told before it; else a stream that ends with it.

    Args:
        answering: runs in a task of its own, which ends with the answer, or when whoever waits for it is cancelled.
        starting: the stage that is being started, if one is.
    """
    road = _Road(answering, starting)
    try:
        first = await road.first()
    except BaseException:
        await road.leave()
        raise
    if first is None and (answer := road.answer()).status_code != 200:
        return answer
    return EventStream(road, first)


class EventStream(Response):
    """An answer in events. Every way it ends, ends the work behind it."""

    def __init__(self, road: _Road, first: bytes | None) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._road = road
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send every event as it comes."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for chunk in self._chunks():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except OSError:
            pass  # how a server may say that the client is gone (ASGI 2.4)
        finally:
            await self._road.leave()

    async def _chunks(self) -> AsyncIterator[bytes]:
        chunk = self._first
        while chunk is not None:
            yield chunk
            chunk = await self._road.next_chunk()
        answer = self._road.answer()
        if answer.body:  # nobody is left to hear that the client is gone
            yield last_event(answer.status_code, bytes(answer.body))


class _Road:
    """One request on its way: the task that works on it, and what that told."""

    def __init__(self, answering: Answering, starting: Starting) -> None:
        self._told: asyncio.Queue[DrawEvent | None] = asyncio.Queue()  # at most one a step, so it needs no bound
        self._starting = starting
        self._task = asyncio.ensure_future(answering(self._told.put_nowait))
        self._task.add_done_callback(lambda _: self._told.put_nowait(None))

    async def first(self) -> bytes | None:
        """The first chunk worth sending; None where the answer came before it."""
        silent_s = 0.0
        while (chunk := await self.next_chunk()) == HEARTBEAT and (silent_s := silent_s + QUIET_S) < MAX_SILENCE_S:
            pass
        return chunk

    async def next_chunk(self) -> bytes | None:
        """The next event, or what is said in its place after a while; None where the answer is there."""
        try:
            async with asyncio.timeout(QUIET_S):
                event = await self._told.get()
        except TimeoutError:
            event = await self._starting()
            return HEARTBEAT if event is None else drawing_event(event)
        return None if event is None else drawing_event(event)

    def answer(self) -> Response:
        """What the task ended with; it has ended."""
        return self._task.result()

    async def leave(self) -> None:
        """End the task, if it has not ended."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
