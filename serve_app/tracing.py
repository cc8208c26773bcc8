"""Traces of requests through all stages (OpenTelemetry); off unless the settings name a collector.

Off costs nothing: no package is imported for it, no header read, and a span is one shared object that does nothing.
On, a request is one trace: the ingress's span, one for each call of a stage, one inside the stage's own process, and
below that the engine's stages. What crosses processes is data: W3C's ``traceparent`` and ``tracestate`` in the job.

Spans hold numbers and names of ours: never a prompt, a picture, a key or an error's text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Final, Literal, Protocol

Carrier = Mapping[str, str]
"""The headers of W3C Trace Context, lower case; empty where there is no trace."""

CARRIER_HEADERS: Final = ("traceparent", "tracestate")

SpanKind = Literal["server", "client", "internal"]


class Span(Protocol):
    """One piece of work of a trace."""

    def carrier(self) -> Carrier:
        """What makes spans of another process this one's children."""
        ...

    def set(self, **values: str | float | bool) -> None:
        """Attributes; a double underscore stands for a dot."""
        ...

    def fail(self, kind: str) -> None:
        """It went wrong in this way."""
        ...

    def add_parts(self, seconds: Mapping[str, float]) -> None:
        """Children that followed one another from this span's start, known only now; empty ones are left out."""
        ...


class Tracer(Protocol):
    """Makes the spans of one process."""

    def span(self, name: str, *, parent: Carrier | None, kind: SpanKind) -> AbstractContextManager[Span]:
        """A span around a ``with`` block. It ends as failed where the block raises.

        Args:
            parent: of another process; None takes the span around this one, if there is one.
        """
        ...

    def current_trace_id(self) -> str:
        """32 hexadecimal digits; empty outside a trace."""
        ...

    def close(self) -> None:
        """Send what has not been sent."""
        ...


class _NoSpan:
    def carrier(self) -> Carrier:
        return {}

    def set(self, **values: str | float | bool) -> None:
        pass

    def fail(self, kind: str) -> None:
        pass

    def add_parts(self, seconds: Mapping[str, float]) -> None:
        pass


_NOTHING: Final = contextlib.nullcontext(_NoSpan())

_tracer: Tracer | None = None


def use(tracer: Tracer | None) -> None:
    """Trace this process from now on, or not at all."""
    global _tracer
    _tracer = tracer


def is_on() -> bool:
    """Whether this process traces."""
    return _tracer is not None


def span(name: str, *, parent: Carrier | None = None, kind: SpanKind = "internal") -> AbstractContextManager[Span]:
    """See :meth:`Tracer.span`."""
    return _NOTHING if _tracer is None else _tracer.span(name, parent=parent, kind=kind)


def current_trace_id() -> str:
    """See :meth:`Tracer.current_trace_id`."""
    return "" if _tracer is None else _tracer.current_trace_id()
