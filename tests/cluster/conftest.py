"""A Ray of several nodes on this machine, GPUs being what nodes declare, and the application on it."""

from __future__ import annotations

import copy
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve_app.proxy_replay import CALLBACK, CALLBACK_VARIABLE
from serve_app.stages import FACE_STAGE, FLUX_REPLICA, INGRESS
from tests.serve.conftest import RunningService, free_port, title_of, until

ROOT = Path(__file__).parents[2]
MARKS = [
    pytest.mark.cluster,
    # Serve's own word for the only knob it has
    pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field in AutoscalingConfig:DeprecationWarning"),
]
ORDER = ("test_cluster_nodes", "test_cluster_faults", "test_cluster_scaling", "test_cluster_embedded")
"""As few changes of the application as may be, and before it what has a Ray of its own; other modules come behind."""
OBJECT_STORE_BYTES = 100 * 2**20
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_GRAFANA_HOST": "0",
    "RAY_health_check_period_ms": "1000",  # a dead node is missed after 3 s instead of 15
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "1000",
    "PYTHONPATH": str(ROOT),  # for tests.cluster.faulty
    CALLBACK_VARIABLE: CALLBACK,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put this folder's modules into :data:`ORDER`, behind all other tests."""

    def place(item: pytest.Item) -> int:
        if item.path.parent != Path(__file__).parent:
            return 0
        return 1 + (ORDER.index(item.path.stem) if item.path.stem in ORDER else len(ORDER))

    items.sort(key=place)


class Machines:
    """Nodes of one Ray: a head for ingress, face stage and Serve itself, and GPU nodes that come and go."""

    def __init__(self, num_gpu_nodes: int = 2) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster()
        self.cluster.add_node(
            num_cpus=4,
            num_gpus=0,
            resources={"entrance": 16, "face": 16},
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
        )
        self.gpu_nodes: list[Any] = []
        for _ in range(num_gpu_nodes):
            self.add_gpu_node()

    def add_gpu_node(self) -> None:
        """Two GPUs more."""
        self.gpu_nodes.append(self.cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=OBJECT_STORE_BYTES))

    def kill_gpu_node(self, index: int) -> None:
        """All of its processes at once, as a machine that loses its power."""
        self.cluster.remove_node(self.gpu_nodes.pop(index), allow_graceful=False)

    def drain_gpu_node(self, index: int) -> None:
        """Tell everybody that it will be gone in a minute: what ``ray drain-node`` does."""
        command = ["ray", "drain-node", "--address", self.cluster.address, "--node-id", self.gpu_nodes[index].node_id]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "rehearsal"]
        command += ["--deadline-remaining-seconds", "60"]
        subprocess.run([Path(sys.executable).with_name(command[0]), *command[1:]], check=True, capture_output=True)

    def index_of_one_with(self, pids: set[int]) -> int:
        """A GPU node on which one of these processes runs."""
        return next(index for index, node in enumerate(self.gpu_nodes) if self.pids_of(node) & pids)

    def controller_pids(self) -> set[int]:
        """Serve's controller, where it lives; other Rays of this machine have theirs."""
        titles = {pid: Path(f"/proc/{pid}/cmdline") for pid in self.pids_of(self.cluster.head_node)}
        return {pid for pid, path in titles.items() if title_of(path).startswith("ray::ServeController")}

    def pids_of(self, node: Any) -> set[int]:
        """Processes that a node's raylet started."""
        from serve_app.local.init import descendants_of

        (raylet,) = node.all_processes["raylet"]
        return set(descendants_of(raylet.process.pid))


@pytest.fixture(scope="package")
def machines() -> Iterator[Machines]:
    """The nodes, with Serve on a free port of the head. They end with this folder's tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        folder = tempfile.mkdtemp(prefix="likeness-", dir="/tmp")  # socket paths must stay short
        patch.setenv("RAY_TMPDIR", folder)
        import ray

        machines = Machines()
        try:
            ray.init(address=machines.cluster.address, namespace="serve", log_to_driver=False, logging_level="ERROR")
            yield machines
        finally:
            ray.shutdown()
            machines.cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


Change = Callable[[dict[str, Any]], None]
Deploy = Callable[..., RunningService]


def rehearsal() -> dict[str, Any]:
    """``serve_config.test.yaml`` with engines that can be broken, every stage on its kind of node, two of each."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.test.yaml").read_text(encoding="utf-8"))
    application = config["applications"][0]
    application["import_path"] = "tests.cluster.faulty:build"
    application["args"]["engine"]["max_step_s"] = 1.5
    for deployment in application["deployments"]:
        deployment["graceful_shutdown_timeout_s"] = 90.0
        deployment["graceful_shutdown_wait_loop_s"] = 0.2  # how often a replica that is let go looks whether it is idle
        options = deployment["ray_actor_options"]
        match deployment["name"]:
            case "Ingress":
                deployment["num_replicas"] = 2
                options["resources"] = {"entrance": 1}
            case "FaceStage":
                deployment["num_replicas"] = 2
                options["resources"] = {"face": 1}
            case "FluxReplica":
                deployment["scaled"] = deployment.pop("autoscaling_config")
                deployment["scaled"]["policy"]["policy_kwargs"] |= {"hold_s": 3.0, "idle_to_zero_s": 3.0}
                deployment["num_replicas"] = 2
    return config


def stage_of(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A deployment's part of a configuration."""
    found: dict[str, Any] = next(d for d in config["applications"][0]["deployments"] if d["name"] == name)
    return found


@pytest.fixture(scope="package")
def deploy(machines: Machines) -> Iterator[Deploy]:
    """Hands a configuration to Serve, in place of the one before, and waits until every stage is ready."""
    from ray import serve
    from ray.serve._private import api
    from ray.serve.schema import ServeDeploySchema

    port, name = free_port(), f"likeness-{secrets.token_hex(4)}-{os.getpid()}"
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120.0, trust_env=False) as client:

        def deployed(
            change: Change | None = None, *, is_awaited: bool = True, within_s: float = 90.0
        ) -> RunningService:
            config = rehearsal()
            config["applications"][0]["name"] = name
            config["http_options"]["port"] = port
            if change is not None:
                change(config)
            stage_of(config, FLUX_REPLICA).pop("scaled", None)
            schema = ServeDeploySchema.model_validate(copy.deepcopy(config))
            controller = api.serve_start(
                http_options=schema.http_options.model_dump(), proxy_location=schema.proxy_location
            )
            controller.deploy_apps(schema, _blocking=False)
            service = RunningService(app_name=name, client=client, port=port)
            if is_awaited:
                until(lambda: is_settled(service), timeout_s=within_s)
            return service

        yield deployed
    serve.shutdown()


def is_settled(service: RunningService) -> bool:
    """Whether Serve has nothing left to do: every deployment healthy, and requests taken."""
    from ray import serve

    application = serve.status().applications.get(service.app_name)
    return (
        application is not None
        and application.status.value == "RUNNING"
        and {d.status.value for d in application.deployments.values()} == {"HEALTHY"}
        and service.client.get("/ready").status_code == 200
    )


@pytest.fixture
def service(deploy: Deploy) -> RunningService:
    """The rehearsal's configuration, two replicas of each stage, all of them up."""
    running = deploy()
    until(lambda: all(len(running.replica_pids(n)) == 2 for n in (INGRESS, FACE_STAGE, FLUX_REPLICA)), timeout_s=60)
    return running
