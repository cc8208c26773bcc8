"""The application with an engine that breaks where a prompt says so. Deployed by ``import_path`` like the real one."""

# No `from __future__ import annotations` here: see serve_app.app.

import contextlib
import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import Any
from unittest import mock

from ray.serve import Application

import serve_app.app
from engine.errors import OutOfDeviceMemoryError
from engine.protocol import ImageEngine
from engine.request import EngineEvent, Failed, ImageRequest, Queued, StepProgress
from engine.wrapped import WrappedEngine
from serve_app.flux_replica import OpenEngine, open_engine
from serve_app.settings import AppSettings

KILL = "kill the process"
KILL_ONCE = "die once"
HANG_ONCE = "hang once"
"""Both followed by the path of a file that does not exist yet; it is made, so that the second run goes well."""
OUT_OF_MEMORY = "out of memory"

FAULT_AT_STEP = 3
"""In the middle of a drawing, with others beside it."""


def build(args: AppSettings) -> Application:
    """:func:`serve_app.app.build`, around another engine."""
    with mock.patch.object(serve_app.app, "open_engine", open_faulty_engine):
        return serve_app.app.build(args)


def open_faulty_engine(**settings: Any) -> OpenEngine:
    """The engine that the settings name, wrapped."""
    opened = open_engine(**settings)
    return dataclasses.replace(opened, engine=FaultyEngine(opened.engine))


class FaultyEngine(WrappedEngine):
    """The engine it is given, until a prompt asks for a fault."""

    def __init__(self, engine: ImageEngine) -> None:
        super().__init__(engine)
        self._prompts: dict[str, str] = {}
        self._num_done: dict[str, int] = {}

    def submit(self, request: ImageRequest) -> Queued:
        queued = self._engine.submit(request)
        self._prompts[request.request_id] = request.prompt
        return queued

    def step(self) -> list[EngineEvent]:
        """One step; whoever has done :data:`FAULT_AT_STEP` of them first does what the prompt says."""
        due = [name for name, num_done in self._num_done.items() if num_done == FAULT_AT_STEP]
        for request_id in due:
            self._do(self._prompts[request_id], request_id)
        events = [self._as_failure(event) for event in self._engine.step()]
        for event in events:
            if isinstance(event, StepProgress):
                self._num_done[event.request_id] = event.step
            else:
                self._num_done.pop(event.request_id, None)
        return events

    def _do(self, prompt: str, request_id: str) -> None:
        if KILL in prompt or (KILL_ONCE in prompt and _is_first_time(prompt)):
            os.kill(os.getpid(), signal.SIGKILL)
        if HANG_ONCE in prompt and _is_first_time(prompt):
            time.sleep(3600.0)
        if OUT_OF_MEMORY in prompt:
            self._engine.cancel(request_id)

    def _as_failure(self, event: EngineEvent) -> EngineEvent:
        if isinstance(event, Failed) and OUT_OF_MEMORY in self._prompts[event.request_id]:
            return Failed(request_id=event.request_id, error=OutOfDeviceMemoryError("the request did not fit"))
        return event


def _is_first_time(prompt: str) -> bool:
    with contextlib.suppress(FileExistsError):
        Path(prompt.rpartition(" ")[2]).touch(exist_ok=False)
        return True
    return False
