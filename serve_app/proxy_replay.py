"""Inside Ray Serve's HTTP proxy: a request whose ingress replica died before it answered goes to another one.

Serve gives such a request up with a bare 500, though its connection is the proxy's and still stands. Serve's proxies
wrap themselves in what ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names; it has to be in the environment of every
node's ``ray start``, as :data:`CALLBACK`. Small bodies then also travel with their requests: see
:mod:`serve_app.carried_body`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.access import browser
from serve_app.carried_body import Arriving
from serve_app.error_answers import describe
from serve_app.errors import StageUnavailableError
from serve_app.request_id import HEADER as REQUEST_ID_HEADER
from serve_app.request_id import request_id_of

logger = logging.getLogger("ray.serve.likeness.proxy")  # below Serve's own, so that it joins the proxy's log

CALLBACK_VARIABLE: Final = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK: Final = "serve_app.proxy_replay:middlewares"

MAX_RUNS: Final = 3
"""One and two more, as for the stages behind the ingress (:data:`serve_app.quarantine.MAX_DEATHS`)."""

PAUSE_S: Final = 0.5
"""Before the first replay, and twice that before the second: Serve's router hears of a death a moment later."""

MAX_KEPT_BYTES: Final = 32 * 2**20
"""Of a body, until its answer begins: above ``limits.max_body_bytes``. What is larger is not run again."""


def middlewares() -> list[Middleware]:
    """Called by Serve where a proxy starts."""
    return [Middleware(ReplayUnanswered)]


class ReplayUnanswered:
    """ASGI middleware that runs what it wraps again where that ends without a word, and the caller is still there."""

    def __init__(self, app: ASGIApp, *, pause_s: float = PAUSE_S, max_kept_bytes: int = MAX_KEPT_BYTES) -> None:
        self._app = app
        self._pause_s = pause_s
        self._max_kept_bytes = max_kept_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, run until it has begun to answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arriving = Arriving(scope, receive)
        await arriving.read_ahead()
        exchange = _Exchange(arriving.receive, send, self._max_kept_bytes)
        for num_run in range(1, MAX_RUNS + 1):
            await self._app(dict(arriving.scope), exchange.receiver(), exchange.send)
            if exchange.has_answer or exchange.is_caller_gone:
                return
            if num_run == MAX_RUNS or not exchange.can_run_again:
                break
            logger.warning("an ingress replica ended under a request; it is run again")
            await asyncio.sleep(num_run * self._pause_s)
        await _give_up(scope, receive, send)


class _Exchange:
    """What passes between the caller and the runs of one request; keeps the body until an answer begins."""

    def __init__(self, receive: Receive, send: Send, max_kept_bytes: int) -> None:
        self._receive = receive
        self._send = send
        self._room_bytes = max_kept_bytes
        self._kept: list[Message] = []
        self.can_run_again = True
        self.has_answer = False
        self.is_caller_gone = False

    def receiver(self) -> Receive:
        """For the next run: what came before once more, and then what comes."""
        num_told = 0

        async def receive() -> Message:
            nonlocal num_told
            if num_told < len(self._kept):
                num_told += 1
                return self._kept[num_told - 1]
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.is_caller_gone = True
            elif self.can_run_again:
                self._keep(message)
                num_told += 1
            return message

        return receive

    async def send(self, message: Message) -> None:
        """On to the caller; from then on there is no second run."""
        self.has_answer = True
        self.can_run_again = False
        self._kept.clear()
        await self._send(message)

    def _keep(self, message: Message) -> None:
        self._room_bytes -= len(message.get("body", b""))
        if self._room_bytes < 0:
            self.can_run_again = False
            self._kept.clear()
        else:
            self._kept.append(message)


async def _give_up(scope: Scope, receive: Receive, send: Send) -> None:
    request_id = request_id_of(scope)
    error = StageUnavailableError("the service's entrance ended while it worked on this request; try again shortly")
    reply = describe(error, request_id=request_id)
    headers = {**browser.HEADERS, **reply.headers, REQUEST_ID_HEADER: request_id}
    await JSONResponse(reply.body, status_code=reply.status, headers=headers)(scope, receive, send)
