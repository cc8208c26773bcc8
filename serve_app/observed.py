"""What every stage's process does first: logs as lines of JSON, traces where the settings name a collector."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from serve_app import tracing
from serve_app.settings import TracingSettings
from serve_app.structured_log import event_line, log_to_stdout

logger = logging.getLogger(__name__)

T = TypeVar("T")


class TracingUnavailableError(Exception):
    """Traces are asked for, and their packages are missing."""


def observe(stage: str, settings: TracingSettings, **where: str) -> None:
    """Log and trace this process as a stage's.

    Args:
        where: further fields of every line of the log.

    Raises:
        TracingUnavailableError: traces are asked for, and their packages are missing.
    """
    log_to_stdout(stage, **where)
    tracing.use(_tracer(stage, settings))


def observed(stage: str, settings: TracingSettings, open_: Callable[[], T]) -> T:
    """:func:`observe`, then what the stage's process opens: a line in the log says how long that took."""
    observe(stage, settings)
    started_s = time.perf_counter()
    opened = open_()
    logger.info(event_line("ready", seconds=round(time.perf_counter() - started_s, 3)))
    return opened


def _tracer(stage: str, settings: TracingSettings) -> tracing.Tracer | None:
    if not settings.otlp_endpoint:
        return None
    try:
        from serve_app.tracing_otel import otlp_tracer  # an optional package, only where it is needed
    except ImportError as error:
        raise TracingUnavailableError(
            "tracing.otlp_endpoint is set, but OpenTelemetry's packages are missing: pip install 'likeness[tracing]'"
        ) from error
    return otlp_tracer(stage, settings)
