"""A local stand-in for the Hugging Face hub: its HTTP interface for downloads, with faults on demand.

Two servers on 127.0.0.1, as in life: the hub itself answers for accounts, gates and metadata and redirects to storage;
storage serves bytes, knows ranges, and must never see a token. What it answers follows the hub's documented
headers (``X-Repo-Commit``, ``X-Linked-Size``, ``X-Linked-Etag``, ``X-Error-Code``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import re
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclasses.dataclass(kw_only=True)
class StoredFile:
    """One file. ``stated_sha256`` and ``stated_size`` let the hub say what its storage does not keep."""

    repo_id: str
    path: str
    content: bytes
    revision: str = COMMIT
    token: str | None = None
    stated_sha256: str | None = None
    stated_size: int | None = None

    @property
    def sha256(self) -> str:
        return self.stated_sha256 or hashlib.sha256(self.content).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """One request, as it came in, and how many bytes of a body went out."""

    server: str
    method: str
    path: str
    range: str | None
    authorization: str | None
    sent_bytes: int


@dataclasses.dataclass(kw_only=True)
class HubServer:
    """The running stand-in and the faults it is told to have.

    Attributes:
        cuts: storage breaks the connection after so many bytes, one entry a request; then it is well again.
        statuses: the hub answers so instead, one entry a request.
        knows_ranges: whether storage honours the Range header.
    """

    url: str = ""
    storage_url: str = ""
    files: list[StoredFile] = dataclasses.field(default_factory=list)
    seen: list[Seen] = dataclasses.field(default_factory=list)
    cuts: list[int] = dataclasses.field(default_factory=list)
    statuses: list[int] = dataclasses.field(default_factory=list)
    knows_ranges: bool = True

    def of(self, server: str, method: str) -> list[Seen]:
        """The requests of one kind, in order."""
        return [seen for seen in self.seen if (seen.server, seen.method) == (server, method)]


@contextlib.contextmanager
def hub_server(*files: StoredFile) -> Iterator[HubServer]:
    """Serve files on two free ports of 127.0.0.1."""
    hub = HubServer(files=list(files))
    with _serving(_hub_handler(hub)) as hub.url, _serving(_storage_handler(hub)) as hub.storage_url:
        yield hub


@contextlib.contextmanager
def _serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that had enough is no fault of ours
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _saw(handler: _Handler, server: str, sent_bytes: int) -> Seen:
    return Seen(
        server=server,
        method=handler.command,
        path=handler.path,
        range=handler.headers.get("Range"),
        authorization=handler.headers.get("Authorization"),
        sent_bytes=sent_bytes,
    )


def _hub_handler(hub: HubServer) -> type[_Handler]:
    class Handler(_Handler):
        def do_HEAD(self) -> None:
            hub.seen.append(_saw(self, "hub", 0))
            if hub.statuses:
                self.answer(hub.statuses.pop(0))
                return
            match = re.fullmatch(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self.path)
            refusal = self.refusal(match)
            if match is None or refusal is not None:
                self.answer(*(refusal or (404, {"X-Error-Code": "EntryNotFound"})))
                return
            file = next(file for file in hub.files if (file.repo_id, file.path) == (match["repo"], match["path"]))
            size = len(file.content) if file.stated_size is None else file.stated_size
            headers = {
                "Location": f"{hub.storage_url}/{file.repo_id}/{file.path}?signature=secret",
                "X-Repo-Commit": file.revision,
                "X-Linked-Size": str(size),
                "X-Linked-Etag": f'"{file.sha256}"',
            }
            self.answer(302, headers)

        do_GET = do_HEAD

        def refusal(self, match: re.Match[str] | None) -> tuple[int, dict[str, str]] | None:
            """How the hub refuses: unknown repositories look like private ones, gates tell who knocks."""
            authorization = self.headers.get("Authorization")
            known = [file for file in hub.files if match and file.repo_id == match["repo"]]
            if not known:
                return 401, {"X-Error-Code": "RepoNotFound"}
            assert match is not None
            token = known[0].token
            if token is not None and authorization is None:
                return 401, {"X-Error-Code": "GatedRepo"}
            if authorization == "Bearer hf_unknown":
                return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}
            if token is not None and authorization != f"Bearer {token}":
                return 403, {"X-Error-Code": "GatedRepo"}
            if match["revision"] not in {file.revision for file in known}:
                return 404, {"X-Error-Code": "RevisionNotFound"}
            if match["path"] not in {file.path for file in known}:
                return 404, {"X-Error-Code": "EntryNotFound"}
            return None

    return Handler


def _storage_handler(hub: HubServer) -> type[_Handler]:
    class Handler(_Handler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0].removeprefix("/")
            content = next(file.content for file in hub.files if f"{file.repo_id}/{file.path}" == path)
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            first = int(wanted[1]) if wanted and hub.knows_ranges else 0
            body = content[first:]
            num_bytes = min(hub.cuts.pop(0), len(body)) if hub.cuts else len(body)
            hub.seen.append(_saw(self, "storage", num_bytes))
            self.send_response(206 if wanted and hub.knows_ranges else 200)
            if wanted and hub.knows_ranges:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body[:num_bytes])
                self.wfile.flush()
            if num_bytes < len(body):
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

    return Handler
