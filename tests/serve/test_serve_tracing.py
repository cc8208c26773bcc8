"""A trace through real Ray processes, seen by a collector that speaks OTLP over HTTP."""

from __future__ import annotations

import pytest

from benchmarks.otlp_collector import collecting
from serve_app.stages import FACE_STAGE, FLUX_REPLICA, INGRESS
from tests.serve.conftest import DEFAULTS, DeployService, until

pytestmark = pytest.mark.serve

CALLERS_TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_a_trace_crosses_all_processes(deploy_service: DeployService) -> None:
    with collecting() as collector:
        service = deploy_service(DEFAULTS | {"tracing": {"otlp_endpoint": collector.url}})
        response = service.draw(headers={"traceparent": f"00-{CALLERS_TRACE}-b7ad6b7169203331-01"})
        assert response.status_code == 200
        expected = {
            *((INGRESS, name) for name in (f"POST {response.request.url.path}", "face", "draw")),
            (FACE_STAGE, FACE_STAGE),
            *((FLUX_REPLICA, name) for name in (FLUX_REPLICA, "denoise", "compress")),
        }
        until(lambda: {(span.stage, span.name) for span in collector.trace(CALLERS_TRACE)} >= expected)
