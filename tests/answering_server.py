"""A small HTTP server that gives the answers a test lists, one after the other, over a real socket."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

COST_HEADERS = {"X-Cost-USD": "0.001234", "X-Execution-Time-Sec": "2.500", "X-GPU-Type": "CPU"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Canned:
    """One answer. ``declared_bytes`` may promise more than ``body`` holds; ``before`` runs before anything is sent."""

    status: int = 200
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""
    declared_bytes: int | None = None
    before: Callable[[], object] = lambda: None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AnsweringServer:
    """Where it listens, and the requests it got: header maps and JSON bodies, in order."""

    url: str
    headers: list[dict[str, str]]
    bodies: list[dict[str, Any]]
    paths: list[str]


def picture_bytes(kind: str = "JPEG", size: tuple[int, int] = (32, 16)) -> bytes:
    """A small encoded picture."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def drawn(kind: str = "JPEG", **headers: str) -> Canned:
    """A 200 answer as the service gives it."""
    return Canned(
        headers={"Content-Type": f"image/{kind.lower()}", **COST_HEADERS, **headers}, body=picture_bytes(kind)
    )


def refused(status: int, message: str = "try later", kind: str = "EngineBusyError", **headers: str) -> Canned:
    """The contract's error body."""
    body = json.dumps({"error": message, "type": kind, "details": {"request_id": "r"}}).encode()
    return Canned(status=status, headers={"Content-Type": "application/json", **headers}, body=body)


@contextlib.contextmanager
def answering(answers: Sequence[Canned]) -> Iterator[AnsweringServer]:
    """Serve ``answers`` on a free port of 127.0.0.1."""
    left = list(answers)
    headers: list[dict[str, str]] = []
    bodies: list[dict[str, Any]] = []
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            headers.append(dict(self.headers.items()))
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            paths.append(self.path)
            answer = left.pop(0)
            answer.before()
            with contextlib.suppress(ConnectionError):
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                length = len(answer.body) if answer.declared_bytes is None else answer.declared_bytes
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(answer.body)
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield AnsweringServer(url=f"http://127.0.0.1:{server.server_port}", headers=headers, bodies=bodies, paths=paths)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
