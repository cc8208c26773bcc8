"""``X-Request-Id``: one short word that names a request in its answer, its error and every log."""

from __future__ import annotations

import re
import secrets
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER: Final = "X-Request-Id"

_SCOPE_KEY: Final = "serve_app.request_id"
_PLAIN_WORD = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id_of(scope: Scope) -> str:
    """The caller's (or proxy's) id where it is a plain short word, else a new one, which the scope then remembers."""
    if _SCOPE_KEY not in scope:
        given = Headers(scope=scope).get(HEADER, "")
        scope[_SCOPE_KEY] = given if _PLAIN_WORD.fullmatch(given) else secrets.token_hex(16)
    return str(scope[_SCOPE_KEY])


class EchoRequestId:
    """ASGI middleware that answers every request with its id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add the header to its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)
