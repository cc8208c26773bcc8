"""Waiting for a cluster process: what it says, how it ends, what people are told. A stand-in speaks, no Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from serve_app.exit_codes import ExitCode
from serve_app.local import inside
from serve_app.local.inside import Plan
from serve_app.local.relay import Address
from serve_app.local.server import ConfigRefusedError, LocalServer, ServerFailedError, _read_events, in_words
from tests.answering_server import Canned, answering, drawn, picture_bytes, refused

NOWHERE = Address(host="127.0.0.1", port=9)  # discard; nothing listens


@contextlib.contextmanager
def saying(
    *events: Mapping[str, Any], log: Path, then: str = "time.sleep(600)", address: Address = NOWHERE
) -> Iterator[LocalServer]:
    """A process that says these events, as the cluster process would, and then does something."""
    lines = "".join(f"print({json.dumps(event)!r})\n" for event in events)
    code = f"import sys, time\n{lines}sys.stdout.flush()\n{then}"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        said: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        reader = threading.Thread(target=_read_events, args=(process, said))
        reader.start()
        try:
            yield LocalServer(address=address, process=process, log_file=log, events=said, reader=reader)
        finally:
            process.kill()
            reader.join()


def deploying(application: str, **deployments: str) -> dict[str, object]:
    return {"phase": "deploying", "applications": [application], "deployments": deployments, "messages": ["it broke"]}


def wait(server: LocalServer, timeout_s: float = 30.0) -> list[str]:
    told: list[str] = []
    server.wait_until_ready(told.append, timeout_s=timeout_s)
    return told


def test_an_application_that_failed_gives_serves_own_words(tmp_path: Path) -> None:
    with (
        saying({"phase": "starting Ray"}, deploying("DEPLOY_FAILED"), log=tmp_path / "log") as server,
        pytest.raises(ServerFailedError, match="failed to start") as caught,
    ):
        wait(server)
    assert caught.value.causes == ("it broke",)


def test_a_refused_config_is_heard_though_the_process_has_ended(tmp_path: Path) -> None:
    event = {"phase": "refused", "problems": ["engine: unknown key 'x'"]}
    with saying(event, log=tmp_path / "log", then="sys.exit(2)") as server:
        server.process.wait()
        with pytest.raises(ConfigRefusedError, match="unknown key 'x'"):
            wait(server)


def test_a_process_that_ends_is_noticed(tmp_path: Path) -> None:
    with saying(log=tmp_path / "log", then="sys.exit(7)") as server, pytest.raises(ServerFailedError, match="status 7"):
        wait(server)


def test_the_wait_ends(tmp_path: Path) -> None:
    with (
        saying(deploying("RUNNING", Ingress="HEALTHY"), log=tmp_path / "log") as server,
        pytest.raises(ServerFailedError, match="not ready after 1 s"),
    ):
        wait(server, timeout_s=1.0)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"phase": "starting Ray"}, "starting Ray"),
        (deploying("DEPLOYING"), "building the application"),
        (deploying("DEPLOYING", Ingress="HEALTHY", FluxReplica="UPDATING"), "starting FluxReplica"),
        (deploying("RUNNING", Ingress="HEALTHY"), "checking that every stage is ready"),
    ],
)
def test_progress_in_words(event: dict[str, object], words: str) -> None:
    assert in_words(event) == words


def test_the_end_of_the_log_without_colours(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"\x1b[36mline {n}\x1b[0m\n" for n in range(100)), encoding="utf-8")
    with saying(log=log) as server:
        assert server.log_tail().splitlines()[-1] == "line 99"
        assert "line 0\n" not in server.log_tail()


PLAN = Plan(
    config="missing.yaml",
    inner=NOWHERE,
    outer=NOWHERE,
    listen_fd=None,
    ready_timeout_s=5.0,
    client_arguments=("flux-ipadapter-faceid", "--prompt", "p"),
    log_file="",
)


def test_a_plan_survives_the_command_line() -> None:
    assert Plan.from_json(PLAN.to_json()) == PLAN
    serving = dataclasses.replace(PLAN, client_arguments=None, listen_fd=3)
    assert Plan.from_json(serving.to_json()) == serving


@pytest.mark.parametrize(("answer", "status"), [(drawn(), 0), (refused(400), 2), (refused(500), 5)])
def test_the_demos_exit_code_is_the_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Canned, status: int
) -> None:
    reference = tmp_path / "ref.jpg"
    reference.write_bytes(picture_bytes())
    flags = ("--prompt", "p", "--reference-image", str(reference), "--output", str(tmp_path / "out.jpg"))
    with answering([answer]) as service:
        address = Address(host="127.0.0.1", port=int(service.url.rpartition(":")[2]))
        running = saying(deploying("RUNNING", Ingress="HEALTHY"), log=tmp_path / "log", address=address)
        monkeypatch.setattr(inside, "local_server", lambda *arguments: running)
        monkeypatch.setattr(LocalServer, "wait_until_ready", lambda *arguments, **options: None)
        plan = dataclasses.replace(PLAN, inner=address, client_arguments=("flux-ipadapter-faceid", *flags))
        assert inside.carry_out(plan, log_file=tmp_path / "log") == status


def test_a_missing_config_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from serve_app.cli import main

    missing = str(tmp_path / "missing.yaml")
    assert main(["serve", "--config", missing]) == ExitCode.BAD_INPUT
    assert "missing.yaml" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
