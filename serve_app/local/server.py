"""Starts the cluster process, watches it until every stage can serve, and says in plain words what went wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from serve_app.local.relay import Address

POLL_S = 0.25
PROBE_TIMEOUT_S = 5.0
LOG_TAIL_LINES = 40
ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # ECMA-48, select graphic rendition
FAILED_STATES = frozenset({"DEPLOY_FAILED", "UNHEALTHY"})  # ray.serve.schema.ApplicationStatus


class ServerFailedError(Exception):
    """The application did not start, or ended.

    Attributes:
        causes: what Serve says about it; empty where only the log can tell.
    """

    def __init__(self, message: str, *, causes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.causes = causes


class ConfigRefusedError(Exception):
    """The Serve config must not be deployed. The message has one line for each problem."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LocalServer:
    """The application of one Serve config on a Ray of its own.

    Attributes:
        address: where it answers HTTP.
        process: the cluster process.
        log_file: what Ray, Serve and the replicas print.
        events: what the cluster process says, newest last.
        reader: fills ``events``; ends with the process.
    """

    address: Address
    process: subprocess.Popen[str]
    log_file: Path
    events: queue.SimpleQueue[Mapping[str, Any]]
    reader: threading.Thread

    def wait_until_ready(
        self,
        report: Callable[[str], None],
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Return when ``GET /ready`` answers 200. ``report`` hears in a few words what is going on.

        Raises:
            ConfigRefusedError: the config is not valid.
            ServerFailedError: the cluster process ended, the application failed, or the time is over.
        """
        deadline_s = clock() + timeout_s
        is_running = False
        with httpx.Client(base_url=str(self.address), timeout=PROBE_TIMEOUT_S, trust_env=False) as client:
            while clock() < deadline_s:
                for event in self.new_events():
                    check_states(event)
                    report(in_words(event))
                    is_running = set(event.get("applications", ())) == {"RUNNING"}
                self.check_alive()
                if is_running and _is_ready(client):
                    return
                sleep(POLL_S)
        raise ServerFailedError(f"the application was not ready after {timeout_s:.0f} s")

    def check_alive(self) -> None:
        """Raise what ended it where the cluster process has ended."""
        status = self.process.poll()
        if status is not None:
            self.reader.join()
            for event in self.new_events():  # it may have said why
                check_states(event)
            raise ServerFailedError(f"the process that runs Ray ended with status {status}")

    def new_events(self) -> Iterator[Mapping[str, Any]]:
        """What the cluster process has said since the last look."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self.events.get_nowait()

    def log_tail(self) -> str:
        """The last lines of the log, without Ray's colours."""
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        return ANSI_COLOUR.sub("", "\n".join(lines[-LOG_TAIL_LINES:]))


@contextlib.contextmanager
def local_server(config: Path, address: Address, log_file: Path) -> Iterator[LocalServer]:
    """Start the cluster process; end it with the ``with`` block. Its own children are left to the container's init."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "serve_app.local.cluster", "--config", str(config)]
    command += ["--host", address.host, "--port", str(address.port)]
    with (
        log_file.open("w", encoding="utf-8") as log,
        subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        events: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        reader = threading.Thread(target=_read_events, args=(process, events), daemon=True)
        reader.start()
        try:
            yield LocalServer(address=address, process=process, log_file=log_file, events=events, reader=reader)
        finally:
            process.kill()  # Ray's daemons share its fate


def check_states(event: Mapping[str, Any]) -> None:
    """Raise ConfigRefusedError or, with Serve's own words, ServerFailedError where the application can't start."""
    if "problems" in event:
        raise ConfigRefusedError("\n".join(event["problems"]))
    if FAILED_STATES & set(event.get("applications", ())):
        raise ServerFailedError("the application failed to start", causes=tuple(event["messages"]))


def in_words(event: Mapping[str, Any]) -> str:
    """What an event of the cluster process means, for people."""
    deployments: Mapping[str, str] = event.get("deployments", {})
    waiting = [name for name, state in deployments.items() if state != "HEALTHY"]
    if waiting:
        return "starting " + ", ".join(waiting)
    if deployments:
        return "checking that every stage is ready"
    if "applications" in event:
        return "building the application"
    return str(event["phase"])


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _read_events(process: subprocess.Popen[str], events: queue.SimpleQueue[Mapping[str, Any]]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        events.put(json.loads(line))
