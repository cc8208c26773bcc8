"""A collector of traces on this machine: takes OTLP over HTTP, keeps every span."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import threading
from collections.abc import Iterator

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CollectedSpan:
    """One span as it arrived. ``stage`` is the process that sent it; times are nanoseconds since 1970."""

    trace_id: str
    stage: str
    name: str
    start_ns: int
    end_ns: int

    @property
    def ms(self) -> float:
        """How long it took."""
        return (self.end_ns - self.start_ns) / 1e6


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Collector:
    """Where it listens, and what has arrived so far."""

    url: str
    spans: list[CollectedSpan] = dataclasses.field(default_factory=list)

    def trace(self, trace_id: str) -> list[CollectedSpan]:
        """The spans of one trace so far."""
        return [span for span in self.spans if span.trace_id == trace_id]

    def take(self, body: bytes) -> None:
        """A batch, as it was sent."""
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = {item.key: item.value.string_value for item in resource.resource.attributes}
            self.spans.extend(
                CollectedSpan(
                    trace_id=span.trace_id.hex(),
                    stage=attributes.get("stage", ""),
                    name=span.name,
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                )
                for scope in resource.scope_spans
                for span in scope.spans
            )


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """Listen on a free port of 127.0.0.1 until the ``with`` block ends."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(url=f"http://127.0.0.1:{server.server_port}/v1/traces")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
