"""Spans by OpenTelemetry's SDK, sent to a collector over OTLP/HTTP. ``pip install 'likeness[tracing]'``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    INVALID_SPAN,
    SpanKind,
    Status,
    StatusCode,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve_app import tracing
from serve_app.settings import TracingSettings
from serve_app.tracing import Carrier

_KINDS: Final[Mapping[tracing.SpanKind, SpanKind]] = {
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "internal": SpanKind.INTERNAL,
}
SEND_EVERY_MS: Final = 1000
"""A replica that dies takes at most the spans of so long with it."""

_W3C: Final = TraceContextTextMapPropagator()


class _Recorded:
    """See :class:`serve_app.tracing.Span`."""

    def __init__(self, tracer: OtelTracer, span: OtelSpan, started_ns: int) -> None:
        self._tracer = tracer
        self._span = span
        self._started_ns = started_ns

    def carrier(self) -> Carrier:
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, set_span_in_context(self._span))
        return carrier

    def set(self, **values: str | float | bool) -> None:
        for name, value in values.items():
            self._span.set_attribute(name.replace("__", "."), value)

    def fail(self, kind: str) -> None:
        self._span.set_status(Status(StatusCode.ERROR, kind))

    def add_parts(self, seconds: Mapping[str, float]) -> None:
        at_ns = self._started_ns
        for name, taken_s in seconds.items():
            end_ns = at_ns + int(taken_s * 1e9)
            if end_ns > at_ns:
                self._tracer.add(name, self._span, at_ns, end_ns)
            at_ns = end_ns


class OtelTracer:
    """See :class:`serve_app.tracing.Tracer`.

    Args:
        processor: where finished spans go.
        stage: the deployment, or whatever this process is.
        settings: name of the service, and the share of requests that are traced where the caller does not say.
    """

    def __init__(self, processor: SpanProcessor, *, stage: str, settings: TracingSettings) -> None:
        resource = Resource({"service.name": settings.service_name, "service.namespace": "likeness", "stage": stage})
        sampler = ParentBased(TraceIdRatioBased(settings.sample_ratio))
        self._provider = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=True)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("likeness")

    @contextlib.contextmanager
    def span(self, name: str, *, parent: Carrier | None, kind: tracing.SpanKind) -> Iterator[tracing.Span]:
        """See :meth:`serve_app.tracing.Tracer.span`."""
        context = None if parent is None else _W3C.extract(parent)
        started_ns = time.time_ns()
        with self._tracer.start_as_current_span(
            name,
            context=context,
            kind=_KINDS[kind],
            start_time=started_ns,
            # Both would write the error's text, and that may hold a caller's words.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield _Recorded(self, span, started_ns)
            except BaseException as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    def add(self, name: str, parent: OtelSpan, start_ns: int, end_ns: int) -> None:
        """A span that is over."""
        span = self._tracer.start_span(name, context=set_span_in_context(parent), start_time=start_ns)
        span.end(end_ns)

    def current_trace_id(self) -> str:
        """See :meth:`serve_app.tracing.Tracer.current_trace_id`."""
        span = get_current_span()
        return "" if span is INVALID_SPAN else format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        """See :meth:`serve_app.tracing.Tracer.close`."""
        self._provider.shutdown()


def otlp_tracer(stage: str, settings: TracingSettings) -> OtelTracer:
    """A tracer that sends to the collector of the settings, in batches, off the threads that work."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint, timeout=settings.timeout_s)
    processor = BatchSpanProcessor(exporter, schedule_delay_millis=SEND_EVERY_MS)
    return OtelTracer(processor, stage=stage, settings=settings)
