"""``likeness demo`` and ``likeness serve`` with the real application on a real Ray; only the engine is the fake one."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from serve_app.local.contain import best_isolation
from tests.answering_server import picture_bytes
from tests.marked_processes import Marked

pytestmark = pytest.mark.serve

CONFIG = """
logging_config: {{enable_access_log: false}}
applications:
  - name: likeness
    route_prefix: /
    import_path: serve_app.app:build
    args:
      profile: embedded
      engine: {engine}
      face: {{cpu_encoder: false}}
    deployments:
      - {{name: Ingress, num_replicas: 1, ray_actor_options: {{num_cpus: 0.1}}}}
      - {{name: FaceStage, num_replicas: 1, ray_actor_options: {{num_cpus: 0.1}}}}
      - {{name: FluxReplica, num_replicas: 1, ray_actor_options: {{num_cpus: 0.1}}}}
"""
QUICK = "{kind: fake}"
SLOW = "{kind: fake, step_s: 30.0}"


@pytest.fixture
def marked() -> Marked:
    return Marked()


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "ref.jpg"
    path.write_bytes(picture_bytes("JPEG", (320, 240)))
    return path


def config(folder: Path, engine: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(engine=engine), encoding="utf-8")
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def likeness(marked: Marked, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command, its two outputs joined."""
    with subprocess.Popen(
        [sys.executable, "-m", "serve_app.cli", *arguments],
        env=marked.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        watchdog = threading.Timer(240.0, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """Everything printed up to the line that matches."""
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if re.search(pattern, line):
            return printed
    raise AssertionError(f"{pattern!r} was never printed:\n{printed}")


def demo(tmp_path: Path, reference: Path, engine: str, output: str = "demo.jpg") -> tuple[str, ...]:
    files = ("--reference-image", str(reference), "--output", str(tmp_path / output))
    return ("demo", "--config", str(config(tmp_path, engine)), *files)


def test_demo_draws_one_picture_and_leaves_nothing(marked: Marked, tmp_path: Path, reference: Path) -> None:
    with likeness(marked, *demo(tmp_path, reference, QUICK)) as process:
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    with Image.open(tmp_path / "demo.jpg") as picture:
        assert (picture.size, picture.format) == ((1024, 1024), "JPEG")
    for line in ("starting Ray", "$ likeness flux-ipadapter-faceid", "Saved ", "X-Cost-USD", "X-Execution-Time-Sec"):
        assert line in printed
    assert marked.none_left()


@pytest.mark.parametrize("moment", ["reading the config", "starting Ray"])
def test_ctrl_c_while_the_demo_starts_leaves_nothing(
    marked: Marked, tmp_path: Path, reference: Path, moment: str
) -> None:
    with likeness(marked, *demo(tmp_path, reference, QUICK)) as process:
        read_until(process, moment)
        assert len(marked.processes()) > 2
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate()
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    assert marked.none_left()
    assert not (tmp_path / "demo.jpg").exists()


def test_serve_answers_on_its_one_port_until_ctrl_c_in_the_middle_of_a_picture(
    marked: Marked, tmp_path: Path, reference: Path
) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    with likeness(marked, "serve", "--config", str(config(tmp_path, SLOW)), "--port", str(port)) as process:
        read_until(process, "Serving on")
        with httpx.Client(base_url=url, trust_env=False, timeout=60.0) as http:
            assert http.get("/ready").json()["is_ready"] is True
            assert http.get("/v1/models").json()["data"][0]["id"] == "embedded"
        opened, proxy_log = listening_ports(marked), log_of_the_proxy(marked)
        flags = ("--prompt", "p", "--reference-image", str(reference), "--output", str(tmp_path / "out.jpg"))
        with likeness(marked, "flux-ipadapter-faceid", *flags, "--url", url) as client:
            read_until(client, "drawing")
            process.send_signal(signal.SIGINT)
            printed, _ = process.communicate()
            client.communicate()
    assert (process.returncode, client.returncode) == (130, 4), printed
    assert "Traceback" not in printed
    assert marked.none_left()
    assert not (tmp_path / "out.jpg").exists()
    assert proxy_log
    assert "GET /ready" not in proxy_log  # its access log is off, as the config says
    if best_isolation(wants_private_network=True).is_network_private:
        assert opened == {port}


def listening_ports(marked: Marked) -> set[int]:
    """TCP ports of this network on which a marked process listens (proc(5): state 0A, inode in column 10)."""
    inodes = marked.socket_inodes()
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes}


def log_of_the_proxy(marked: Marked) -> str:
    """What Serve's proxy has written so far."""
    logs = [Path(target) for target in marked.open_descriptors() if re.search(r"/serve/proxy_[^/]*\.log$", target)]
    return "".join(log.read_text(encoding="utf-8") for log in logs)


def test_a_taken_port_is_told_at_once(marked: Marked, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with likeness(marked, "serve", "--config", str(config(tmp_path, QUICK)), "--port", str(port)) as process:
            printed, _ = process.communicate()
    assert process.returncode == 2
    assert f"Port {port} on 127.0.0.1 is taken" in printed
    assert "Ray" not in printed


def test_a_wrong_config_names_the_key_and_starts_nothing(marked: Marked, tmp_path: Path, reference: Path) -> None:
    with likeness(marked, *demo(tmp_path, reference, "{kind: fake, step_ms: 1}")) as process:
        printed, _ = process.communicate()
    assert process.returncode == 2, printed
    assert "step_ms" in printed
    assert "starting Ray" not in printed
    assert marked.none_left()
