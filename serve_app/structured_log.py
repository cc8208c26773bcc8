"""Logs of the service's processes: one line of JSON an event, on standard output.

A line has ``time``, ``level``, ``stage`` and ``event``, and what the event brings: ``request`` (one for every picture
request, :mod:`serve_app.request_log`), ``scaling`` (one for every decision, in the controller's log), ``ready`` (a
replica), and ``log`` for any other message. Never a prompt or a picture.
"""

from __future__ import annotations

import datetime
import json
import logging
import re
import sys
import traceback
from pathlib import PurePath
from typing import Any, Final

ROOTS: Final = ("serve_app", "engine")
"""The loggers above all of ours."""

MAX_ERROR_CHARS: Final = 300
MAX_FRAMES: Final = 12

_REMOTE_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>\S+)', re.MULTILINE)


def event_line(event: str, /, **fields: Any) -> str:
    """An event as a logger's message; :class:`JsonLines` puts time, level and place before it."""
    return _json({"event": event, **fields})


class JsonLines(logging.Formatter):
    """Every record as one line of JSON.

    Args:
        where: fields of every line: stage, replica.
    """

    def __init__(self, **where: str) -> None:
        super().__init__()
        self._where = where

    def format(self, record: logging.LogRecord) -> str:
        """One line; an error as its class, its first words, and the places that it came through."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        head = _json({"time": time, "level": record.levelname.lower(), **self._where})
        message = record.getMessage()
        if not message.startswith('{"event":'):
            fields = {"logger": record.name, "message": message}
            error = record.exc_info[1] if record.exc_info else None
            message = event_line("log", **fields, **({} if error is None else error_fields(error)))
        return f"{head[:-1]},{message[1:]}"


def error_fields(error: BaseException) -> dict[str, Any]:
    """An error for the log: no source lines, and no folders of this machine."""
    frames = [(f.filename, f.lineno or 0, f.name) for f in traceback.extract_tb(error.__traceback__)]
    shown = error
    if isinstance(cause := getattr(error, "cause", None), BaseException):
        # What a remote stage raised: Ray brings the error, and its traceback as text.
        shown = cause
        frames += [(f["file"], int(f["line"]), f["name"]) for f in _REMOTE_FRAME.finditer(str(error))]
    return {
        "error": type(shown).__name__,
        "error_message": " ".join(_message(shown).split())[:MAX_ERROR_CHARS],
        "frames": [f"{'/'.join(PurePath(file).parts[-2:])}:{line} {name}" for file, line, name in frames[-MAX_FRAMES:]],
    }


def _message(error: BaseException) -> str:
    """What an error says; pydantic's says which value was wrong, and that may be a caller's prompt."""
    if type(error).__module__.startswith("pydantic"):
        return f"{getattr(error, 'error_count', lambda: 1)()} values are wrong"
    return str(error)


def log_to_stdout(stage: str, **where: str) -> None:
    """Send everything that our code logs in this process to standard output. The last call counts."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines(stage=stage, **where))
    for name in ROOTS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"))
