"""What browsers are told: with every answer, and about the pages of other sites."""

from __future__ import annotations

from typing import Any, Final

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""Of every answer that does not say otherwise itself, as ``/docs`` does about scripts. No Strict-Transport-Security:
that is for whoever holds the certificate."""

_EXPOSED: Final = (
    "X-Cost-USD",
    "X-Execution-Time-Sec",
    "X-GPU-Type",
    "X-Request-Id",
    "X-Seed",
    "X-Model",
    "X-Image-Size",
    "X-Drawn-Size",
    "X-Face-Similarity",
    "X-Candidates",
    "X-Warning",
    "Server-Timing",
    "Retry-After",
)
"""What a browser lets other sites' pages read: every header that the API's description names."""
_ALLOWED: Final = ("Authorization", "X-API-Key", "Content-Type", "Accept", "X-Request-Id")
_PREFLIGHT_MAX_AGE_S: Final = 600


class BrowserHeaders:
    """ASGI middleware that adds :data:`HEADERS`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and complete the headers of its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = list(message.get("headers", ()))
                names = {name.lower() for name, _ in own}
                message["headers"] = own + [pair for pair in self._headers if pair[0] not in names]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def for_other_sites(allowed_origins: list[str]) -> list[Any]:
    """The middleware that lets pages of these origins call the service; none where there are none.

    Without it browsers keep answers from other sites' pages, and since the contract wants ``application/json`` they
    ask first and don't even send. No cookies are ever used, so no credentials are allowed.
    """
    if not allowed_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=list(_ALLOWED),
            expose_headers=list(_EXPOSED),
            max_age=_PREFLIGHT_MAX_AGE_S,
        )
    ]
