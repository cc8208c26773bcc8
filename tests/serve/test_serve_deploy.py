"""The configuration file's road: Serve builds the application itself, and changes what it may in place."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve_app.stages import FACE_STAGE, FLUX_REPLICA, INGRESS
from tests.asgi import FAKE_SETTINGS, body
from tests.serve.conftest import RunningService, until

pytestmark = pytest.mark.serve

PREFIX = "/declared"

Deploy = Callable[[dict[str, Any]], RunningService]


@pytest.fixture
def config() -> dict[str, Any]:
    """The local configuration with a fake engine, beside the application of the other tests."""
    loaded: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "serve_config.local.yaml").read_text())
    application = loaded["applications"][0]
    application |= {"name": f"declared-{secrets.token_hex(4)}", "route_prefix": PREFIX, "args": dict(FAKE_SETTINGS)}
    for deployment in application["deployments"]:
        deployment["ray_actor_options"]["num_cpus"] = 0.1
    return loaded


@pytest.fixture
def deploy(serve_port: int, config: dict[str, Any]) -> Iterator[Deploy]:
    """Hands a configuration to Serve, as ``serve deploy`` does, and waits for what comes of it."""
    from ray import serve
    from ray.serve._private.api import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    name = config["applications"][0]["name"]
    with httpx.Client(base_url=f"http://127.0.0.1:{serve_port}{PREFIX}", timeout=300.0, trust_env=False) as client:

        def deployed(wanted: dict[str, Any]) -> RunningService:
            schema = ServeDeploySchema.model_validate(copy.deepcopy(wanted))
            _get_global_client().deploy_apps(schema, _blocking=False)
            return RunningService(app_name=name, client=client, port=serve_port)

        yield deployed
    serve.delete(name)


def state(name: str) -> tuple[str, str]:
    """Serve's word for the application, and what it has to say."""
    from ray import serve

    application = serve.status().applications[name]
    return str(application.status.value), application.message


def test_a_configuration_is_built_scaled_in_place_and_refused(deploy: Deploy, config: dict[str, Any]) -> None:
    application = config["applications"][0]
    service = deploy(config)
    until(lambda: service.client.get("/ready").status_code == 200)
    assert service.client.post("/flux-ipadapter-faceid", json=body()).status_code == 200, "also under a prefix"
    before = {name: service.replica_pids(name) for name in (INGRESS, FACE_STAGE, FLUX_REPLICA)}

    next(d for d in application["deployments"] if d["name"] == FLUX_REPLICA)["num_replicas"] = 2
    deploy(config)
    until(lambda: len(service.replica_pids(FLUX_REPLICA)) == 2)
    until(lambda: state(application["name"])[0] == "RUNNING")
    for name, pids in before.items():
        assert pids <= service.replica_pids(name), "a replica that loads for minutes must not restart for this"

    application["args"]["modle_dir"] = "/models"
    deploy(config)
    until(lambda: state(application["name"])[0] == "DEPLOY_FAILED")
    assert "unknown key 'modle_dir'; did you mean 'model_dir'?" in state(application["name"])[1]
    assert service.client.get("/ready").status_code == 200, "what ran before goes on"


def test_a_stage_that_finds_no_place_is_named(deploy: Deploy, config: dict[str, Any]) -> None:
    (flux,) = (d for d in config["applications"][0]["deployments"] if d["name"] == FLUX_REPLICA)
    flux["ray_actor_options"]["num_cpus"] = 1000
    flux["graceful_shutdown_timeout_s"] = 0.1  # or deleting it waits as long for a replica that never was
    client = deploy(config).client
    until(lambda: client.get("/health").status_code == 200)
    until(lambda: "FaceStage" not in client.get("/ready").json()["error"])
    response = client.get("/ready")
    answer = response.json()
    assert (response.status_code, answer["type"]) == (503, "StageUnavailableError")
    assert answer["error"] == "not ready: FluxReplica (updating: no replica is running, 1 on the way)"
    assert [stage["is_ready"] for stage in answer["details"]["stages"]] == [True, True, False]
