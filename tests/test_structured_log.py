"""The log's lines: JSON every one, with time, level and stage; errors without folders or callers' words."""

from __future__ import annotations

import datetime
import json
import logging
import subprocess
import sys
from typing import Any

import pytest
from pydantic import BaseModel

from serve_app.structured_log import MAX_ERROR_CHARS, MAX_FRAMES, JsonLines, error_fields, event_line


def formatted(
    message: str, *args: object, error: BaseException | None = None, level: int = logging.INFO
) -> dict[str, Any]:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("serve_app.x", level, __file__, 1, message, args, exc_info)
    line = JsonLines(stage="Ingress").format(record)
    assert "\n" not in line
    fields: dict[str, Any] = json.loads(line)
    return fields


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_an_event_keeps_its_fields_and_gets_time_level_and_stage() -> None:
    fields = formatted(event_line("request", request_id="r", stages_s={"face": 0.1}))
    time = datetime.datetime.fromisoformat(fields.pop("time"))
    assert abs(time.timestamp() - datetime.datetime.now().timestamp()) < 3600.0
    assert fields == {
        "level": "info", "stage": "Ingress", "event": "request", "request_id": "r", "stages_s": {"face": 0.1}
    }  # fmt: skip


def test_any_other_message_is_a_line_too() -> None:
    fields = formatted("%d keys\nread", 3, level=logging.WARNING)
    assert (fields["event"], fields["level"], fields["logger"]) == ("log", "warning", "serve_app.x")
    assert fields["message"] == "3 keys\nread"


def test_an_error_is_its_class_its_words_and_where_it_came_through() -> None:
    fields = formatted("it broke", error=raised(KeyError("colour")))
    assert (fields["error"], fields["error_message"]) == ("KeyError", "'colour'")
    (frame,) = fields["frames"]
    assert frame.startswith("tests/test_structured_log.py:") and frame.endswith(" raised")


def test_what_callers_wrote_does_not_come_with_an_error() -> None:
    class Body(BaseModel):
        steps: int

    with pytest.raises(ValueError, match="swordfish") as caught:
        Body.model_validate({"steps": "swordfish"})
    assert "swordfish" not in json.dumps(error_fields(caught.value))


def test_errors_do_not_flood_the_log() -> None:
    def deeper(depth: int) -> None:
        if depth:
            deeper(depth - 1)
        raise ValueError("x" * 100_000)

    try:
        deeper(50)
    except ValueError as error:
        fields = error_fields(error)
    assert len(fields["error_message"]) == MAX_ERROR_CHARS
    assert len(fields["frames"]) == MAX_FRAMES


def test_a_remote_stages_frames_are_found() -> None:
    from ray.exceptions import RayTaskError

    text = 'Traceback:\n  File "/opt/app/engine/runner.py", line 12, in step\n    return secret\nKeyError: 1'
    remote = RayTaskError("draw", text, KeyError("k")).as_instanceof_cause()
    fields = error_fields(raised(remote))
    assert fields["error"] == "KeyError"
    assert fields["frames"][-1] == "engine/runner.py:12 step"
    assert "secret" not in json.dumps(fields) and "/opt" not in json.dumps(fields)


def test_a_process_of_the_service_writes_nothing_but_json() -> None:
    code = (
        "import logging; from serve_app.structured_log import event_line, log_to_stdout\n"
        "log_to_stdout('X'); log_to_stdout('FaceStage', replica='r1')\n"
        "logging.getLogger('engine.loop').warning('slow')\n"
        "logging.getLogger('serve_app.request').info(event_line('request', status=200))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["event"], line["stage"], line["replica"]) for line in lines] == [
        ("log", "FaceStage", "r1"),
        ("request", "FaceStage", "r1"),
    ]
    assert done.stderr == ""
