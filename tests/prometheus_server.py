"""A real Prometheus, as a process of a test's own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from monitoring.start import command, config_for, find_program

IS_PROMETHEUS_HERE = find_program("prometheus") is not None and find_program("promtool") is not None

needs_prometheus = pytest.mark.skipif(
    not IS_PROMETHEUS_HERE,
    reason="there is no Prometheus here: apt install prometheus, or python3 scripts/get_prometheus.py",
)


def program(name: str) -> str:
    """Where ``prometheus`` or ``promtool`` is."""
    found = find_program(name)
    assert found is not None
    return str(found)


class Prometheus:
    """Its HTTP interface."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, **parameters: Any) -> Any:
        """``data`` of an answer."""
        response = self._client.get(f"/api/v1/{path}", params=parameters)
        answer = response.json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Series of an expression now, those that are no number left out."""
        result: list[dict[str, Any]] = self.get("query", query=expr)["result"]
        return [series for series in result if series["value"][1] != "NaN"]

    def value(self, expr: str) -> float | None:
        """The one number of an expression; None where there is none."""
        series = self.query(expr)
        assert len(series) <= 1, series
        return float(series[0]["value"][1]) if series else None

    def is_scraping(self, job: str) -> bool:
        """Whether a job has targets, and all of them answered."""
        health = [t["health"] for t in self.get("targets")["activeTargets"] if t["labels"]["job"] == job]
        return bool(health) and set(health) == {"up"}


@contextlib.contextmanager
def prometheus(
    folder: Path, targets: Sequence[str], ray_files: Sequence[str] = (), *, metrics_path: str = "/metrics"
) -> Iterator[Prometheus]:
    """Prometheus with this project's configuration, that looks every second."""
    config = config_for(targets, folder, scrape_s=1, ray_files=ray_files, metrics_path=metrics_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    args = command(Path(program("prometheus")), config, listen=address, data=folder / "data")
    log = folder / "prometheus.log"
    with log.open("w") as output, subprocess.Popen(args, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            with httpx.Client(base_url=f"http://{address}", timeout=10.0, trust_env=False) as client:
                _wait(client, process, log)
                yield Prometheus(client)
        finally:
            process.terminate()


def _wait(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + 60.0
    while True:
        with contextlib.suppress(httpx.TransportError):
            if client.get("/-/ready").status_code == 200:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.1)
