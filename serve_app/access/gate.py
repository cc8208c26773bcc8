"""The ASGI middleware at the door: before a byte of the body is read, it knows who comes and whether they may."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Final, Protocol

from fastapi import Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.access.address import AddressBook
from serve_app.access.key_file import KeySource
from serve_app.access.keys import Client
from serve_app.access.limiter import Limiter
from serve_app.access.limits import Limits, LocalLimits
from serve_app.access.settings import ALWAYS_OPEN, AccessSettings
from serve_app.access.visit import Visit, client_name, current_visit, remember_client
from serve_app.error_answers import describe
from serve_app.errors import HeadersTooLargeError, KeyDisabledError, KeyRequiredError, ServeAppError
from serve_app.request_id import request_id_of
from serve_app.request_log import RequestRecord

_REASONS: Final[dict[type[ServeAppError], str]] = {
    HeadersTooLargeError: "headers",
    KeyRequiredError: "key",
    KeyDisabledError: "disabled_key",
}


KEY_SCHEMES: Final = tuple(
    Security(scheme)
    for scheme in (
        HTTPBearer(auto_error=False, description="An API key: `Authorization: Bearer KEY`."),
        APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key in a header of its own."),
    )
)
"""For the API's description alone: the gate, which comes first, has looked at keys already."""


class DoorMetrics(Protocol):
    """Where the door counts."""

    def turned_away(self, reason: str) -> None:
        """A request was refused: headers, key, disabled_key, rate, quota or concurrency."""
        ...

    def client_served(self, client: str, *, status: int, device_s: float) -> None:
        """A request of a client with a key ended."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Door:
    """What the gate asks.

    Attributes:
        settings: paths, headers, and the limits of clients without keys.
        keys: None where keys are off; clients are then their addresses.
        limits: None where nothing can be limited.
    """

    settings: AccessSettings
    keys: KeySource | None
    limits: Limits | None
    metrics: DoorMetrics


class Gate:
    """Refuses, or passes on with a :class:`serve_app.access.visit.Visit` around it."""

    def __init__(self, app: ASGIApp, door: Door, clock: Callable[[], float] = time.perf_counter) -> None:
        self._app = app
        self._door = door
        self._clock = clock
        self._open_paths = frozenset((*ALWAYS_OPEN, *door.settings.open_paths))
        self._addresses = AddressBook(door.settings.trusted_proxies)
        self._has_guests = door.keys is not None or door.settings.limits.are_any

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request in, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = self._clock()
        try:
            self._check_headers(scope)
            visit = await self._enter(scope)
        except ServeAppError as error:
            await self._turn_away(error, scope, receive, send, started_s)
            return
        if visit is None:
            await self._app(scope, receive, send)
        else:
            await self._accompany(visit, scope, receive, send)

    def _check_headers(self, scope: Scope) -> None:
        """Ray Serve's proxy passes on any number of headers of any length."""
        headers, settings = scope["headers"], self._door.settings
        if len(headers) > settings.max_headers:
            raise HeadersTooLargeError(
                f"the request has {len(headers)} headers; at most {settings.max_headers} are read"
            )
        num_bytes = sum(len(name) + len(value) for name, value in headers)
        if num_bytes > settings.max_header_bytes:
            raise HeadersTooLargeError(
                f"the request's headers have {num_bytes} bytes; at most {settings.max_header_bytes} are read"
            )

    async def _enter(self, scope: Scope) -> Visit | None:
        """The visit of a request that may go on; None where nobody asks whose it is."""
        if not self._has_guests or _path(scope) in self._open_paths:
            return None
        door = self._door
        visit = Visit(client=self._client_of(scope), limits=door.limits, on_refused=door.metrics.turned_away)
        await visit.enter()
        return visit

    def _client_of(self, scope: Scope) -> Client:
        keys, settings = self._door.keys, self._door.settings
        if keys is None:
            return Client(name=self._addresses.client_of(scope), limits=settings.limits)
        client = keys.ring().client_of(Headers(scope=scope))
        remember_client(scope, client)
        return client

    async def _accompany(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        token = current_visit.set(visit)
        try:
            await self._app(scope, receive, send_and_note)
        finally:
            current_visit.reset(token)
            visit.leave()
            if self._door.keys is not None:
                self._door.metrics.client_served(visit.client.name, status=status, device_s=visit.device_s)

    async def _turn_away(
        self, error: ServeAppError, scope: Scope, receive: Receive, send: Send, started_s: float
    ) -> None:
        if type(error) in _REASONS:
            self._door.metrics.turned_away(_REASONS[type(error)])
        request_id = request_id_of(scope)
        reply = describe(error, request_id=request_id)
        record = RequestRecord(
            request_id=request_id,
            started_s=started_s,
            client=client_name(scope),
            outcome=reply.type_name,
            status=reply.status,
        )
        record.stages_s["total"] = self._clock() - started_s
        record.log()
        await JSONResponse(reply.body, status_code=reply.status, headers=reply.headers)(scope, receive, send)


def _path(scope: Scope) -> str:
    """The path below the application's prefix. Whatever is not exactly an open path is closed."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


def open_door(
    settings: AccessSettings, *, metrics: DoorMetrics, max_visit_s: float, limits: Limits | None = None
) -> Door:
    """A door as the settings say.

    Args:
        max_visit_s: how long a request can take at most.
        limits: who counts; this process alone where None.

    Raises:
        KeyFileError: the key file can't be used.
    """
    keys = KeySource(settings.key_file, defaults=settings.limits) if settings.key_file else None
    if keys is None and not settings.limits.are_any:
        limits = None
    elif limits is None:
        limits = LocalLimits(Limiter(max_visit_s=max_visit_s))
    return Door(settings=settings, keys=keys, limits=limits, metrics=metrics)
