"""The client's side of an event stream: events from bytes, in words for people, and the answer at the end.

What is read comes from a server that may be any server: nothing of it is believed before it was looked at.
"""

from __future__ import annotations

import binascii
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import httpx

from serve_app import data_url

EVENT_STREAM: Final = "text/event-stream"

_HEADERS: Final[Mapping[str, tuple[str, ...]]] = {
    "X-Cost-USD": ("cost_usd",),
    "X-Execution-Time-Sec": ("execution_time_s",),
    "X-GPU-Type": ("gpu_type",),
    "X-Seed": ("seed",),
    "X-Model": ("model", "id"),
    "X-Request-Id": ("request_id",),
}
"""Where the JSON answer has what the other forms say in a header."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ServerEvent:
    """One event and its JSON object."""

    name: str
    data: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What an event says to people; ``fraction`` of the steps is done, None where that is not known."""

    text: str
    fraction: float | None


class BrokenEventsError(ValueError):
    """The stream is not one of this service."""


def events_in(chunks: Iterable[bytes]) -> Iterator[ServerEvent]:
    """The events of a stream as they arrive; comments and half an event at the end are left out.

    Raises:
        BrokenEventsError: not UTF-8, or an event whose data are not a JSON object.
    """
    name = ""
    data: list[str] = []
    for line in _lines(chunks):
        if not line:
            if data:
                yield ServerEvent(name=name or "message", data=_json_object("\n".join(data)))
            name, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)


def progress_of(event: ServerEvent) -> Progress | None:
    """An event for the progress line; None where it has nothing to say there."""
    match event.name, event.data:
        case "starting" | "restarted", {"message": str(message)}:
            return Progress(text=message, fraction=None)
        case "queued", {"position": int(position), "predicted_wait_s": float() | int() as wait_s}:
            begins = "begins now" if wait_s < 0.5 else f"place {position}, begins in about {wait_s:.0f} s"
            return Progress(text=begins, fraction=0.0)
        case "step", {"step": int(step), "num_steps": int(num_steps), "remaining_s": float() | int() as left_s}:
            fraction = min(1.0, max(0.0, step / max(1, num_steps)))
            return Progress(text=f"step {step} of {num_steps}, about {left_s:.0f} s left", fraction=fraction)
    return None


def plain_answer(event: ServerEvent) -> httpx.Response | None:
    """The answer that the stream's last event stands for, as it had come without a stream; None for other events.

    Raises:
        BrokenEventsError: the event lacks what it must hold.
    """
    try:
        if event.name == "done":
            return _drawn(event.data)
        if event.name == "error":
            return _refused(event.data)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise BrokenEventsError(f"the event {event.name} is not complete") from error
    return None


def _drawn(data: Mapping[str, Any]) -> httpx.Response:
    picture = data_url.parse(data["image"])
    headers = {"Content-Type": picture.media_type, "X-Drawn-Size": f"{data['drawn_width']}x{data['drawn_height']}"}
    for header, (first, *others) in _HEADERS.items():
        value = data[first]
        for key in others:
            value = value[key]
        headers[header] = _one_line(str(value))
    if (score := data.get("face_similarity")) is not None:  # else not measured, or no face
        headers["X-Face-Similarity"] = _one_line(str(score))
    warnings = "; ".join(f"{warning['code']}: {warning['message']}" for warning in data["warnings"])
    if warnings:
        headers["X-Warning"] = _one_line(warnings)
    return httpx.Response(httpx.codes.OK, headers=headers, content=picture.data)


def _refused(data: Mapping[str, Any]) -> httpx.Response:
    details = data["details"]
    status = details["status"]
    if not isinstance(status, int) or not 400 <= status <= 599:
        raise ValueError(f"{status!r} is no status of an error")
    headers = {"Retry-After": f"{float(details['retry_after_s']):g}"} if "retry_after_s" in details else {}
    return httpx.Response(status, headers=headers, content=json.dumps(data).encode())


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines without their ends, LF or CR LF; what is not ended is no line. A picture is one line of megabytes."""
    pieces: list[bytes] = []
    for chunk in chunks:
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            line = b"".join((*pieces, end)).removesuffix(b"\r")
            pieces = []
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise BrokenEventsError("the events are not UTF-8") from error
        pieces.append(rest)


def _json_object(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BrokenEventsError("an event is not JSON") from error
    if not isinstance(value, dict):
        raise BrokenEventsError("an event is no JSON object")
    return value


def _one_line(text: str) -> str:
    return "".join(char if " " <= char <= "~" else "?" for char in text)
