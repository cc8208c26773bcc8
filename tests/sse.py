"""Server-sent events as tests read them, and callers over bare ASGI that can leave."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from typing import Any

from tests.asgi import URL, Service, body

EVENTS = {"Accept": "text/event-stream"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One event with its JSON."""

    name: str
    data: dict[str, Any]


def events_of(text: str) -> list[Event]:
    """The events of a stream that ended; comments are left out. Anything malformed fails."""
    assert text.endswith("\n\n")
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            assert "\n" not in block
            continue
        first, second = block.split("\n")
        assert first.startswith("event: ") and second.startswith("data: ")
        events.append(Event(name=first.removeprefix("event: "), data=json.loads(second.removeprefix("data: "))))
    return events


@dataclasses.dataclass(kw_only=True)
class Caller:
    """A request over bare ASGI whose caller may leave at any time.

    Attributes:
        status: of the answer, once it has begun.
        received: what was sent to it so far.
    """

    service: Service
    accept: str = "text/event-stream"
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    request_id: str = "caller"
    status: int = 0
    received: bytes = b""
    is_complete: bool = False

    def __post_init__(self) -> None:
        self._gone = asyncio.Event()
        self._is_broken = False
        self._content = [json.dumps(body(**self.changes)).encode()]
        self._task = asyncio.ensure_future(self._call())

    def leave(self) -> None:
        """Close the connection."""
        self._gone.set()

    def break_off(self) -> None:
        """Close the connection so that reading from it fails."""
        self._is_broken = True
        self._gone.set()

    def cut(self) -> None:
        """Let the server cancel the handler, as some do when the connection is closed."""
        self._task.cancel()

    async def ended(self) -> None:
        """Wait until the application has let go of the request."""
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    @property
    def events(self) -> list[Event]:
        """The events so far."""
        return events_of(self.received.decode())

    async def _call(self) -> None:
        headers = [(b"content-type", b"application/json"), (b"accept", self.accept.encode())]
        headers.append((b"x-request-id", self.request_id.encode()))
        scope = {"type": "http", "method": "POST", "path": URL, "query_string": b"", "headers": headers}
        await self.service.app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if self._content:
            return {"type": "http.request", "body": self._content.pop(), "more_body": False}
        await self._gone.wait()
        if self._is_broken:
            raise RuntimeError("the task that reads the connection was cancelled")
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.received += message["body"]
            self.is_complete = not message.get("more_body", False)
