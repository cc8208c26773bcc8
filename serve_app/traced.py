"""Where traces meet the application: a middleware at the ingress, a wrapper around its calls of the stages."""

from __future__ import annotations

import dataclasses
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app import tracing
from serve_app.request_id import request_id_of
from serve_app.stages import DrawJob, DrawResult, FaceJob, FaceResult, IdentityJob, IdentityResult, OnDrawEvent
from serve_app.wrapped_backend import WrappedBackend

SERVER_ERROR: Final = 500


class TraceRequests:
    """ASGI middleware: a trace for each request to some paths, continuing the caller's where it brings one."""

    def __init__(self, app: ASGIApp, paths: tuple[str, ...]) -> None:
        self._app = app
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, in a span of its own."""
        if scope["type"] != "http" or scope["path"] not in self._paths:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        parent = {name: headers[name] for name in tracing.CARRIER_HEADERS if name in headers}
        with tracing.span(f"{scope['method']} {scope['path']}", parent=parent, kind="server") as span:
            span.set(http__request__method=scope["method"], http__route=scope["path"], request_id=request_id_of(scope))

            async def send_seen(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set(http__response__status_code=message["status"])
                    if message["status"] >= SERVER_ERROR:
                        span.fail(str(message["status"]))
                await send(message)

            await self._app(scope, receive, send_seen)


class TracedBackend(WrappedBackend):
    """A backend whose calls are spans, and whose jobs carry them along."""

    async def prepare(self, job: FaceJob) -> FaceResult:
        """See :meth:`serve_app.stages.Backend.prepare`."""
        with tracing.span("face", kind="client") as span:
            result = await self._backend.prepare(dataclasses.replace(job, trace=span.carrier()))
            span.set(is_cached=result.is_cached, provider=result.provider)
            return result

    async def draw(self, job: DrawJob, on_event: OnDrawEvent | None = None) -> DrawResult:
        """See :meth:`serve_app.stages.Backend.draw`."""
        with tracing.span("draw", kind="client") as span:
            return await self._backend.draw(dataclasses.replace(job, trace=span.carrier()), on_event)

    async def identify(self, job: IdentityJob) -> IdentityResult:
        """See :meth:`serve_app.stages.Backend.identify`."""
        with tracing.span("identity", kind="client") as span:
            return await self._backend.identify(dataclasses.replace(job, trace=span.carrier()))
