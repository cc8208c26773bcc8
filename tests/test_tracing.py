"""Traces: one tree for each request, through all stages, continuing the caller's; nothing of it where they are off."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from serve_app import tracing
from serve_app.observed import TracingUnavailableError, observe
from serve_app.settings import TracingSettings
from serve_app.stages import FACE_STAGE, FLUX_REPLICA
from serve_app.tracing_otel import OtelTracer
from tests.asgi import URL, Service, picture_url, with_service

CALLERS_TRACE, CALLERS_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{CALLERS_TRACE}-{CALLERS_SPAN}-01"

Start = Callable[..., InMemorySpanExporter]


@pytest.fixture
def start() -> Iterator[Start]:
    """Turns tracing on, with settings; what was traced is in the exporter."""

    def begin(**settings: Any) -> InMemorySpanExporter:
        exporter = InMemorySpanExporter()
        processor = SimpleSpanProcessor(exporter)
        tracing.use(OtelTracer(processor, stage="test", settings=TracingSettings(**settings)))
        return exporter

    yield begin
    tracing.use(None)


def tree(spans: tuple[ReadableSpan, ...]) -> list[str]:
    """``parent > child`` of every span, sorted."""
    names = {span.context.span_id: span.name for span in spans if span.context}
    return sorted(f"{names.get(span.parent.span_id, 'caller') if span.parent else ''} > {span.name}" for span in spans)


def lifetime_ns(span: ReadableSpan) -> tuple[int, int]:
    """Start and end."""
    assert span.start_time is not None and span.end_time is not None
    return span.start_time, span.end_time


def test_a_request_is_one_tree_through_all_stages(start: Start) -> None:
    exporter = start()

    async def test(service: Service) -> None:
        assert (await service.draw(headers={"X-Request-Id": "r-1"})).status_code == 200

    with_service(test)
    spans = exporter.get_finished_spans()
    # The fake engine has no text encoder and no decoder, so no seconds there.
    assert [name for name in tree(spans) if not name.endswith(" > queue")] == [
        f" > POST {URL}",
        "FluxReplica > compress",
        "FluxReplica > denoise",
        f"POST {URL} > draw",
        f"POST {URL} > face",
        f"draw > {FLUX_REPLICA}",
        f"face > {FACE_STAGE}",
    ]
    (root,) = [span for span in spans if span.parent is None]
    assert root.kind is SpanKind.SERVER
    assert dict(root.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": URL,
        "request_id": "r-1",
        "http.response.status_code": 200,
    }
    assert len({span.context.trace_id for span in spans if span.context}) == 1
    begun_ns, ended_ns = lifetime_ns(root)
    for span in spans:
        start_ns, end_ns = lifetime_ns(span)
        assert begun_ns <= start_ns <= end_ns <= ended_ns + 1_000_000


def test_the_callers_trace_goes_on(start: Start) -> None:
    exporter = start()

    async def test(service: Service) -> None:
        await service.draw(headers={"traceparent": TRACEPARENT, "tracestate": "vendor=1"})
        assert service.stages.drawn[0].trace["traceparent"].startswith(f"00-{CALLERS_TRACE}-")
        assert service.stages.drawn[0].trace["tracestate"] == "vendor=1"

    with_service(test)
    spans = exporter.get_finished_spans()
    (root,) = [span for span in spans if span.kind is SpanKind.SERVER]
    assert root.parent is not None and format_span_id(root.parent.span_id) == CALLERS_SPAN
    assert {format_trace_id(span.context.trace_id) for span in spans if span.context} == {CALLERS_TRACE}


@pytest.mark.parametrize("header", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_broken_header_starts_a_new_trace(header: str, start: Start) -> None:
    exporter = start()

    async def test(service: Service) -> None:
        assert (await service.draw(headers={"traceparent": header})).status_code == 200

    with_service(test)
    assert any(span.parent is None for span in exporter.get_finished_spans())


def test_requests_at_once_do_not_mix(start: Start) -> None:
    exporter = start()

    async def test(service: Service) -> None:
        faces = [picture_url((50 * number, 0, 0)) for number in range(4)]
        await asyncio.gather(*(service.draw(reference_image=face) for face in faces))

    with_service(test)
    by_trace: dict[int, list[str]] = {}
    for span in exporter.get_finished_spans():
        assert span.context is not None
        by_trace.setdefault(span.context.trace_id, []).append(span.name)
    assert len(by_trace) == 4
    for names in by_trace.values():
        assert sorted(set(names) - {"queue"}) == sorted(
            [f"POST {URL}", "draw", "face", FACE_STAGE, FLUX_REPLICA, "denoise", "compress"]
        )


def test_failures_show_without_a_word_of_the_caller(start: Start) -> None:
    exporter = start()

    async def test(service: Service) -> None:
        service.stages.draw_error = RuntimeError("swordfish")
        assert (await service.draw(prompt="swordfish")).status_code == 500
        assert (await service.draw(width=1000)).status_code == 400

    with_service(test)
    spans = exporter.get_finished_spans()
    assert "swordfish" not in "".join(span.to_json() for span in spans)
    failed = {span.name: span.status.description for span in spans if span.status.status_code is StatusCode.ERROR}
    assert failed == {"draw": "RuntimeError", f"POST {URL}": "500"}, "a wrong request is no failure of the service"


def test_the_sample_decides_where_the_caller_does_not(start: Start) -> None:
    exporter = start(sample_ratio=0.0)

    async def test(service: Service) -> None:
        await service.draw()
        assert exporter.get_finished_spans() == ()
        await service.draw(headers={"traceparent": TRACEPARENT})

    with_service(test)
    assert len(exporter.get_finished_spans()) >= 5


def test_the_log_names_the_trace(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    start()

    async def test(service: Service) -> None:
        caplog.set_level(logging.INFO, logger="serve_app.request")
        await service.draw(headers={"traceparent": TRACEPARENT})
        (line,) = [json.loads(record.getMessage()) for record in caplog.records if record.name == "serve_app.request"]
        assert line["trace_id"] == CALLERS_TRACE

    with_service(test)


def test_off_leaves_no_trace_and_imports_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test(service: Service) -> None:
        caplog.set_level(logging.INFO, logger="serve_app.request")
        await service.draw(headers={"traceparent": TRACEPARENT})
        assert service.stages.drawn[0].trace == service.stages.prepared[0].trace == {}
        assert "trace_id" not in caplog.text

    with_service(test)
    assert tracing.span("x") is tracing.span("y"), "one object for all that is not traced"
    code = "import sys, serve_app.observed, serve_app.face_stage; print('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serve_app.tracing_otel", None)
    monkeypatch.setattr("serve_app.observed.log_to_stdout", lambda stage, **where: None)
    with pytest.raises(TracingUnavailableError, match=r"pip install 'likeness\[tracing\]'"):
        observe("Ingress", TracingSettings(otlp_endpoint="http://127.0.0.1:4318/v1/traces"))
    observe("Ingress", TracingSettings())
    assert not tracing.is_on()
