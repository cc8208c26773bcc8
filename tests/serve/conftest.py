"""One local Ray for the session, and the real application on it, reached through real HTTP."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from serve_app.settings import AppSettings
from tests.asgi import FAKE_SETTINGS, URL, body, metric_sum
from tests.bad_input import LIMITS

T = TypeVar("T")

DEFAULTS: dict[str, Any] = FAKE_SETTINGS | {
    "limits": LIMITS | {"request_timeout_s": 300.0},
    "identity": {"enabled": True},
}
"""A fake engine of 10 ms a step behind the real face stage, and the stage that measures faces."""
DEFAULTS["engine"] = {"kind": "fake", "step_s": 0.01, "device_name": "NVIDIA L40S"}

SURELY_AT_WORK_S = 0.6
"""After it was sent, a picture of 100 steps, which take a second, is being drawn, whatever titles say."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunningService:
    """An application that is ready.

    Attributes:
        app_name: its name in Serve.
        client: for its address.
        port: where its proxy listens on 127.0.0.1.
    """

    app_name: str
    client: httpx.Client
    port: int

    def draw(self, headers: dict[str, str] | None = None, **changes: Any) -> httpx.Response:
        """POST a good request with changes."""
        return self.client.post(URL, json=body(**changes), headers=headers or {})

    def metric(self, name: str, **labels: str) -> float:
        """A sum of samples of ``/metrics`` that carry these labels."""
        return metric_sum(self.client.get("/metrics").text, name, **labels)

    def replica_pids(self, deployment: str) -> set[int]:
        """Processes of a deployment's replicas. The application's name is unique on this machine."""
        return self._pids(deployment, r"(\..*)?")  # and what it is doing

    def busy_pids(self, deployment: str) -> set[int]:
        """Those of them that answer a call now, as far as their titles tell: Ray writes the latest call there, and
        takes it away when any call ends, so that a picture under a health check may be missing."""
        return self._pids(deployment, r"\.handle_request.*")

    def idle_pids(self, deployment: str) -> set[int]:
        """Those of them whose titles name no call."""
        return self._pids(deployment, "")

    def _pids(self, deployment: str, doing: str) -> set[int]:
        title = re.compile(rf"ray::ServeReplica:{self.app_name}:{deployment}{doing}")
        return {int(p.parent.name) for p in Path("/proc").glob("[0-9]*/cmdline") if title.fullmatch(title_of(p))}

    def wait_for_work(self, deployment: str) -> None:
        """Return once a replica is at work on what it was just sent."""
        with contextlib.suppress(AssertionError):  # its title may have been taken away
            until(lambda: self.busy_pids(deployment), timeout_s=SURELY_AT_WORK_S)

    def replica_pid(self, deployment: str) -> int:
        """The process of its only replica, once those of an earlier deployment are gone."""
        until(lambda: len(self.replica_pids(deployment)) == 1)
        (pid,) = self.replica_pids(deployment)
        return pid

    @contextlib.contextmanager
    def held(self, deployment: str) -> Iterator[None]:
        """Its only replica does nothing meanwhile, as a program after Ctrl-Z."""
        pid = self.replica_pid(deployment)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def asking(self, headers: dict[str, str] | None = None, **changes: Any) -> Iterator[None]:
        """A good request with changes is on its way; its caller leaves with the block and waits for no answer."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port)) as connection:
            headers = {"Content-Type": "application/json"} | (headers or {})
            connection.request("POST", URL, json.dumps(body(**changes)), headers)
            yield


def title_of(path: Path) -> str:
    """What a process of ``/proc/*/cmdline`` calls itself; nothing where there is none any more."""
    try:
        return path.read_bytes().rstrip(b"\0 ").decode(errors="replace")
    except OSError:  # it ended meanwhile
        return ""


def until(condition: Callable[[], T], *, timeout_s: float = 120.0) -> T:
    """Wait until a condition holds, and return what it then is; fails where it never comes."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.05)
    return found


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def serve_port() -> Iterator[int]:
    """A Ray of our own with Serve on it, on a free port. Ends with the session, and touches no other Ray."""
    variables = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_GRAFANA_HOST": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        # Ray's own folder would be shared with every other Ray of the machine; socket paths must stay short.
        folder = tempfile.mkdtemp(prefix="likeness-", dir="/tmp")
        import ray
        from ray import serve

        port = free_port()
        ray.init(
            address="local",
            num_cpus=8,  # two applications at a time, of up to four stages with a CPU each
            include_dashboard=False,
            object_store_memory=128 * 2**20,
            log_to_driver=False,
            logging_level="WARNING",
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            yield port
        finally:
            serve.shutdown()
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


DeployService = Callable[..., RunningService]


@pytest.fixture(scope="session")
def deploy_service(serve_port: int) -> Iterator[DeployService]:
    """Deploys the application with any settings, in place of the one before; returns when it is ready.

    Costs nothing where the same settings are deployed already.
    """
    from ray import serve

    from serve_app.app import build

    app_name = f"likeness-{secrets.token_hex(4)}-{os.getpid()}"

    with httpx.Client(base_url=f"http://127.0.0.1:{serve_port}", timeout=300.0, trust_env=False) as client:
        deployed: dict[str, Any] = {}

        def deploy(settings: dict[str, Any] | None = None) -> RunningService:
            nonlocal deployed
            if deployed != (wanted := settings or DEFAULTS):
                application = build(AppSettings.model_validate(wanted))
                serve.run(application, name=app_name, route_prefix="/")
                until(lambda: client.get("/ready").status_code == 200)
                deployed = wanted
            return RunningService(app_name=app_name, client=client, port=serve_port)

        yield deploy


@pytest.fixture
def service(deploy_service: DeployService) -> RunningService:
    """The application with :data:`DEFAULTS`, for every test that needs nothing else."""
    return deploy_service()
