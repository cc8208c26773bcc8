"""A body that is there with its request travels with it, from Serve's proxy to the ingress.

Serve's proxy sends a replica the request's head alone; the replica then calls the proxy back for the body. That call
costs milliseconds of time, and of two processes' work (docs/performance.md). So what runs inside the proxy
(:mod:`serve_app.proxy_replay`) waits a moment for a body that is small, and puts it beside the head.
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_CARRIED_BYTES: Final = 960 * 2**10
"""Head and body together stay below ``RAY_max_direct_call_object_size`` as shipped, 1 MiB: what is larger would take
Ray's slower road, through its object store."""

MAX_WAIT_S: Final = 0.1
"""A body that takes longer is left to the ingress, which has a limit for that time and counts who exceeds it."""

_SCOPE_KEY: Final = "serve_app.carried_body"


class Arriving:
    """A request whose body may be read before anybody asks for it.

    Attributes:
        scope: the request's head; with its body, once that was read whole.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self._receive = receive
        self._untold: list[Message] = []

    async def read_ahead(self, max_wait_s: float = MAX_WAIT_S) -> None:
        """Take the body along where it is small and comes at once."""
        if not _may_be_carried(self.scope):
            return
        parts = self._untold
        try:
            async with asyncio.timeout(max_wait_s):
                while not parts or parts[-1].get("more_body"):
                    parts.append(await self._receive())
        except TimeoutError:
            return
        if all(part["type"] == "http.request" for part in parts):
            self.scope = {**self.scope, _SCOPE_KEY: b"".join(part.get("body", b"") for part in parts)}
            parts.clear()

    async def receive(self) -> Message:
        """What comes, but for a body that travels with the head."""
        return self._untold.pop(0) if self._untold else await self._receive()


class TakeCarriedBody:
    """ASGI middleware of the ingress: the body is read from where it travelled, as if it came from the caller."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; callers can't set what is looked for, it is no header."""
        unread: bytes | None = scope.pop(_SCOPE_KEY, None)

        async def body_first() -> Message:
            nonlocal unread
            if unread is None:
                return await receive()
            body, unread = unread, None
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive if unread is None else body_first, send)


def _may_be_carried(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    declared = headers.get("content-length", "")
    is_small = declared.isascii() and declared.isdigit() and 0 < int(declared[:20]) <= MAX_CARRIED_BYTES
    return is_small and "expect" not in headers  # which asks whether to send a body at all
