"""Prometheus finds Ray's nodes by itself, those that come and those that go."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import ENVIRONMENT
from tests.prometheus_server import needs_prometheus, prometheus
from tests.serve.conftest import until

pytestmark = [pytest.mark.cluster, needs_prometheus]

CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster()
small = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
cluster.add_node(include_dashboard=True, dashboard_port=0, **small)
more = []
for line in sys.stdin:
    if line == "add\\n":
        more.append(cluster.add_node(**small))
    else:
        cluster.remove_node(more.pop())
cluster.shutdown()
"""
"""A Ray of its own, in a process of its own: one process can belong to one Ray only."""


@pytest.fixture
def nodes() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A head with its dashboard, which writes the list of nodes; told "add" or "remove", it changes them."""
    with tempfile.TemporaryDirectory(prefix="likeness-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        environment = {**ENVIRONMENT, "RAY_TMPDIR": folder, "PATH": str(Path(sys.executable).parent) + ":/usr/bin:/bin"}
        command = [sys.executable, "-c", CLUSTER]
        with subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process, Path(folder)
            finally:
                assert process.stdin is not None
                process.stdin.close()  # the cluster ends with its input


def test_nodes_are_watched_from_when_they_come_until_they_go(
    nodes: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    process, folder = nodes

    def say(word: str) -> None:
        assert process.stdin is not None
        process.stdin.write(word + "\n")
        process.stdin.flush()

    def listed() -> list[str]:
        files = sorted(folder.glob("**/prom_metrics_service_discovery.json"))
        return json.loads(files[0].read_text())[0]["targets"] if files else []

    until(lambda: bool(listed()), timeout_s=90)
    ray_file = next(folder.glob("**/prom_metrics_service_discovery.json"))
    with prometheus(tmp_path, ["127.0.0.1:9"], [str(ray_file)]) as watching:

        def num_nodes() -> float | None:
            return watching.value("count(ray_node_mem_total)")

        until(lambda: num_nodes() == 1, timeout_s=60)
        say("add")
        say("add")
        until(lambda: num_nodes() == 3, timeout_s=90)
        assert watching.is_scraping("ray"), "the head's dashboard and autoscaler are on the list as well"
        say("remove")
        until(lambda: num_nodes() == 2, timeout_s=90)
        until(lambda: watching.is_scraping("ray"), timeout_s=60)
