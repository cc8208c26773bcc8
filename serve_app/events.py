"""What the events of a drawing look like on the wire: ``event: NAME`` and one line of JSON."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from pydantic import BaseModel

from serve_app import data_url
from serve_app.contract_answers import QueuedEvent, RestartedEvent, StartingEvent, StepEvent
from serve_app.data_url import Picture
from serve_app.stages import DrawEvent, DrawQueued, DrawRestarted, DrawStep, StageStarting

HEARTBEAT: Final = b": still here\n\n"
"""A comment, which readers skip."""


def drawing_event(event: DrawEvent) -> bytes:
    """An event on the way to the picture."""
    match event:
        case StageStarting():
            return _of("starting", _starting(event))
        case DrawQueued():
            return _of("queued", _queued(event))
        case DrawStep():
            return _of("step", _step(event))
        case DrawRestarted():
            return _of("restarted", RestartedEvent())


def last_event(status: int, answer: bytes) -> bytes:
    """The end of a stream: ``done`` with the JSON answer, or ``error`` with the contract's body and its status."""
    if status == 200:
        return _wire("done", answer)
    body: dict[str, Any] = json.loads(answer)
    body["details"]["status"] = status
    return _wire("error", json.dumps(body, separators=(",", ":")).encode())


def _starting(event: StageStarting) -> StartingEvent:
    phase = f" ({event.phase})" if event.phase else ""
    of_about = "" if event.expected_s is None else f" of about {math.ceil(event.expected_s)} s"
    return StartingEvent(
        stage=event.stage,
        elapsed_s=round(event.elapsed_s, 1),
        expected_s=None if event.expected_s is None else round(event.expected_s, 1),
        message=f"starting a replica of {event.stage}{phase}: {event.elapsed_s:.0f} s{of_about}",
    )


def _queued(event: DrawQueued) -> QueuedEvent:
    return QueuedEvent(
        position=event.position,
        predicted_wait_s=round(event.predicted_wait_s, 3),
        predicted_device_s=round(event.predicted_device_s, 3),
    )


def _step(event: DrawStep) -> StepEvent:
    preview = event.preview and data_url.build(Picture(data=event.preview, media_type="image/jpeg"))
    return StepEvent(
        step=event.step, num_steps=event.num_steps, remaining_s=round(event.remaining_s, 3), preview=preview or None
    )


def _of(name: str, body: BaseModel) -> bytes:
    return _wire(name, body.model_dump_json().encode())


def _wire(name: str, data: bytes) -> bytes:
    """``data`` is JSON on one line, which is all that an event's data needs to be safe."""
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
