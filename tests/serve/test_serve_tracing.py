"""A trace through real Ray processes, seen by a collector that speaks OTLP over HTTP."""

from __future__ import annotations

import collections
import contextlib
import http.server
import threading
from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from serve_app.stages import FACE_STAGE, FLUX_REPLICA, INGRESS
from tests.serve.conftest import DEFAULTS, DeployService, until

pytestmark = pytest.mark.serve

CALLERS_TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector:
    """What arrived: names of spans by trace and by the stage that sent them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: dict[str, dict[str, set[str]]] = collections.defaultdict(lambda: collections.defaultdict(set))

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = {item.key: item.value.string_value for item in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans[span.trace_id.hex()][attributes["stage"]].add(span.name)


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}/v1/traces")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_trace_crosses_all_processes(deploy_service: DeployService) -> None:
    with collecting() as collector:
        service = deploy_service(DEFAULTS | {"tracing": {"otlp_endpoint": collector.url}})
        response = service.draw(headers={"traceparent": f"00-{CALLERS_TRACE}-b7ad6b7169203331-01"})
        assert response.status_code == 200
        trace = collector.spans[CALLERS_TRACE]
        until(lambda: trace.keys() >= {INGRESS, FACE_STAGE, FLUX_REPLICA})
        until(lambda: f"POST {response.request.url.path}" in trace[INGRESS])
        assert {"face", "draw"} <= trace[INGRESS]
        assert trace[FACE_STAGE] == {FACE_STAGE}
        assert {FLUX_REPLICA, "denoise", "compress"} <= trace[FLUX_REPLICA]
