"""Ray's own autoscaler, with the node types of ``cluster.yaml``: a GPU node comes with the first request, and goes.

Only the cloud is a stand-in, Ray's fake provider, which starts every node as processes of this machine. Prometheus
finds the nodes by itself, in the list that Ray's dashboard writes.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ray._private.state import GlobalState
from ray._raylet import GcsClientOptions
from ray.autoscaler._private.util import prepare_config

from serve_app.local.init import descendants_of
from tests.asgi import URL
from tests.cluster.conftest import ENVIRONMENT, MARKS, ROOT, stage_of
from tests.cluster.load import Load, picture_body
from tests.prometheus_server import IS_PROMETHEUS_HERE, prometheus
from tests.serve.conftest import until

pytestmark = MARKS

BIN = Path(sys.executable).parent
FAKE_HEAD_TYPE = "ray.head.default"
"""What the fake provider calls the type of the node that it finds itself on."""
GCS_PORT = 6379
"""The fake provider knows no other."""
FAKE_PROVIDER = {
    "type": "external",
    "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
    "use_node_id_as_ip": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
}


def rehearsed() -> dict[str, Any]:
    """``cluster.yaml`` without its cloud: one CPU node at least, and nodes that are given back within seconds."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    config |= {
        "provider": FAKE_PROVIDER,
        "auth": {"ssh_user": "nobody"},
        "file_mounts": {},
        "idle_timeout_minutes": 0.1,
    }
    del config["docker"]
    types = config["available_node_types"]
    for node_type in types.values():
        node_type["node_config"] = {}
        node_type["resources"]["object_store_memory"] = 100 * 2**20
    types["cpu"]["min_workers"] = 1
    types[FAKE_HEAD_TYPE] = types.pop(config["head_node_type"])
    config["head_node_type"] = FAKE_HEAD_TYPE
    for name in [name for name in config if name.endswith("_commands")]:
        config[name] = []
    return {**prepare_config(config), "cluster_synced_files": []}  # as `ray up` hands it to the head


def quiet_port() -> int:
    """A port below those that the kernel gives out, which may connect to themselves before anybody listens."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port := random.randint(20_000, 30_000)))
            return port


class FakeCloud:
    """A head with Ray's autoscaler, whose nodes it starts and ends."""

    def __init__(self, folder: Path) -> None:
        self._dashboard_port = quiet_port()
        self._environment = os.environ | ENVIRONMENT
        self._environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_TMPDIR": str(folder)}
        self._environment["RAY_ADDRESS"] = f"127.0.0.1:{GCS_PORT}"
        self.folder = folder
        self._state = GlobalState()  # asks this Ray, whichever one this process belongs to
        options = GcsClientOptions.create(
            self._environment["RAY_ADDRESS"], None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False
        )
        self._state._initialize_global_state(options)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> FakeCloud:
        file = self.folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(rehearsed()), encoding="utf-8")
        command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=0", "--num-gpus=0"]
        command += [
            f"--port={GCS_PORT}",
            f"--dashboard-port={self._dashboard_port}",
            "--dashboard-host=127.0.0.1",
        ]
        command += [f"--autoscaling-config={file}", "--object-store-memory=100000000"]
        environment = {name: value for name, value in self._environment.items() if name != "RAY_ADDRESS"}
        with (self.folder / "head.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        until(self._is_up, timeout_s=90)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        pids = [self._process.pid, *descendants_of(self._process.pid), *self._own_pids()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def _is_up(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            version = httpx.get(f"http://127.0.0.1:{self._dashboard_port}/api/version", trust_env=False)
            return version.status_code == 200 and bool(self.nodes())
        return False

    def _own_pids(self) -> Iterator[int]:
        """What has left the head's family, by the folder that all of its processes have in their environment."""
        needle = f"RAY_TMPDIR={self.folder}".encode()
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if needle in environ.read_bytes() and int(environ.parent.name) != os.getpid():
                    yield int(environ.parent.name)

    def nodes(self) -> list[dict[str, float]]:
        """Resources of every living node."""
        return [node["Resources"] for node in self._state.node_table() if node["Alive"]]

    def num_with(self, resource: str) -> int:
        """Nodes that declare a resource."""
        return sum(resource in resources for resources in self.nodes())

    def deploy(self, config: dict[str, Any]) -> None:
        """``serve deploy``."""
        file = self.folder / "serve_config.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        address = f"http://127.0.0.1:{self._dashboard_port}"
        subprocess.run([BIN / "serve", "deploy", "--address", address, file], env=self._environment, check=True)


def placed_as_in_production() -> dict[str, Any]:
    """``serve_config.test.yaml`` with the places of ``serve_config.yaml``."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.test.yaml").read_text(encoding="utf-8"))
    production = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf-8"))
    for deployment in config["applications"][0]["deployments"]:
        options = stage_of(production, deployment["name"])["ray_actor_options"]
        deployment["ray_actor_options"] = options | {"num_cpus": 0.1}
    return config


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    """In a folder with a short path: those of Ray's sockets hang below it."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", GCS_PORT)) == 0:
            pytest.skip(f"another Ray listens on port {GCS_PORT}, and the fake provider knows no other")
    with (
        tempfile.TemporaryDirectory(prefix="likeness-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        FakeCloud(Path(folder)) as cloud,
    ):
        yield cloud


@contextlib.contextmanager
def watching(cloud: FakeCloud, folder: Path) -> Iterator[Callable[[int], None]]:
    """Waits until Prometheus sees so many nodes, and all that Ray lists; where there is no Prometheus, nobody looks."""
    if not IS_PROMETHEUS_HERE:
        yield lambda _: None
        return
    ray_file = next(cloud.folder.glob("**/prom_metrics_service_discovery.json"))
    with prometheus(folder, ["127.0.0.1:9"], [str(ray_file)]) as asked:

        def sees(num_nodes: int) -> None:
            until(lambda: asked.value("count(ray_node_mem_total)") == num_nodes, timeout_s=90)
            until(lambda: asked.is_scraping("ray"), timeout_s=60)  # the head's dashboard and autoscaler as well

        yield sees


def test_a_gpu_node_comes_with_the_first_request_and_goes_again(cloud: FakeCloud, tmp_path: Path) -> None:
    config = placed_as_in_production()
    port = config["http_options"]["port"] = quiet_port()
    cloud.deploy(config)
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120.0, trust_env=False) as client,
        watching(cloud, tmp_path) as prometheus_sees,
    ):

        def is_ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return client.get("/ready", timeout=5.0).status_code == 200
            return False

        until(is_ready, timeout_s=90)
        assert (cloud.num_with("GPU"), cloud.num_with("face")) == (0, 1)
        prometheus_sees(2)
        started_s = time.monotonic()
        assert client.post(URL, json=picture_body()).status_code == 200
        print(f"first picture, node included: {time.monotonic() - started_s:.1f} s")
        assert (cloud.num_with("gpu_80gb"), cloud.num_with("gpu_48gb")) == (1, 0)
        with Load(str(client.base_url)).running(1):  # which keeps the node
            prometheus_sees(3)
        until(lambda: cloud.num_with("GPU") == 0, timeout_s=90)
        assert client.get("/ready").json()["is_awake"] is False
        prometheus_sees(2)
