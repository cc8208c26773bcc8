"""What describes machines: valid by the schemas of those who read it, safe by default, with room for the stages."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from deploy.rayservice import MANIFEST, in_a_pod, manifest_with
from serve_app.cli import build_parser
from serve_app.config_file import validate_serve_config
from serve_app.local.contain import private_environment
from serve_app.proxy_replay import CALLBACK, CALLBACK_VARIABLE
from serve_app.stages import FACE_STAGE, FLUX_REPLICA, INGRESS

ROOT = Path(__file__).resolve().parent.parent
CRD = Path(os.environ.get("KUBERAY_CRD", ROOT.parent / "shared" / "data" / "ray.io_rayservices.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMAGE = f"registry.example.org/likeness:{PROJECT['version']}"
(RAY_VERSION,) = (name.partition("==")[2] for name in PROJECT["dependencies"] if name.startswith("ray["))


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture
def cluster() -> dict[str, Any]:
    return load(ROOT / "cluster.yaml")


@pytest.fixture
def rayservice() -> dict[str, Any]:
    return load(MANIFEST)


# -- schemas -----------------------------------------------------------------------------------------------------------


def test_the_cluster_file_is_what_rays_launcher_takes(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


@pytest.mark.parametrize("key", ["idle_timeout_minute", "file_mount"])
def test_the_launchers_schema_refuses_misspelt_keys(cluster: dict[str, Any], key: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match=key):
        validate_config(prepare_config(cluster | {key: 1}))


def strict(schema: Any) -> Any:
    """A Kubernetes schema as a JSON schema that refuses unknown keys, as ``kubectl apply --validate=strict`` does."""
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if "properties" in made and "type" in made:
        made.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return made


@pytest.fixture(scope="module")
def crd() -> jsonschema.Draft202012Validator:
    if not CRD.is_file():
        pytest.skip("KubeRay's RayService CRD is not here; KUBERAY_CRD names its file")
    version = yaml.load(CRD.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)["spec"]["versions"][0]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, which CRDs leave out
    schema["properties"]["apiVersion"] = {"const": f"ray.io/{version['name']}"}
    return jsonschema.Draft202012Validator(schema)


def test_the_manifest_is_what_kuberay_takes(rayservice: dict[str, Any], crd: jsonschema.Draft202012Validator) -> None:
    crd.validate(rayservice)


@pytest.mark.parametrize(
    "path", ["spec.rayClusterConfig.enableInTreeAutoscalin", "spec.rayClusterConfig.headGroupSpec.template.spec.conts"]
)
def test_kuberays_schema_refuses_misspelt_keys(
    rayservice: dict[str, Any], crd: jsonschema.Draft202012Validator, path: str
) -> None:
    *sections, key = path.split(".")
    spoilt = table = copy.deepcopy(rayservice)
    for section in sections:
        table = table[section]
    table[key] = True
    with pytest.raises(jsonschema.ValidationError, match=key):
        crd.validate(spoilt)


def test_kubernetes_serves_the_same_configuration(rayservice: dict[str, Any]) -> None:
    wanted = in_a_pod(load(ROOT / "serve_config.yaml"))
    held = yaml.safe_load(rayservice["spec"]["serveConfigV2"])
    assert held == wanted, "serve_config.yaml has changed: run python -m deploy.rayservice"
    validate_serve_config(held)


def test_the_manifests_other_lines_stay_when_the_configuration_is_written_anew() -> None:
    text = MANIFEST.read_text(encoding="utf-8")
    config = yaml.safe_load(yaml.safe_load(text)["spec"]["serveConfigV2"])
    assert manifest_with(config, text) == text
    other = manifest_with({"applications": []}, text)
    assert yaml.safe_load(other)["spec"] == yaml.safe_load(text)["spec"] | {"serveConfigV2": "applications: []\n"}
    with pytest.raises(ValueError, match="found 0"):
        manifest_with(config, "spec: {}\n")


# -- safe by default --------------------------------------------------------------------------------------------------


def options(command: str) -> dict[str, str]:
    """Flags and variables of a command line."""
    words = [word.lstrip("-").partition("=") for word in shlex.split(command) if "=" in word]
    return {name: value for name, _, value in words}


def test_no_node_can_be_reached_from_outside(cluster: dict[str, Any]) -> None:
    provider = cluster["provider"]
    assert provider["use_internal_ips"] is True
    networks = [r["CidrIp"] for rule in provider["security_group"]["IpPermissions"] for r in rule["IpRanges"]]
    assert networks
    assert all(network.startswith("10.") for network in networks)
    head, worker = (cluster[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker"))
    assert options(head)["dashboard-host"] == "127.0.0.1"
    assert options(head)["RAY_AUTH_MODE"] == options(worker)["RAY_AUTH_MODE"] == "token"
    assert "/home/ray/.ray/auth_token" in cluster["file_mounts"]


def test_every_proxy_runs_unanswered_requests_again(
    cluster: dict[str, Any], rayservice: dict[str, Any], tmp_path: Path
) -> None:
    for kind in ("head", "worker"):
        assert options(cluster[f"{kind}_start_ray_commands"][-1])[CALLBACK_VARIABLE] == CALLBACK
    config = rayservice["spec"]["rayClusterConfig"]
    for group in (config["headGroupSpec"], *config["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": CALLBACK_VARIABLE, "value": CALLBACK} in container["env"]
    assert private_environment(tmp_path, {})[CALLBACK_VARIABLE] == CALLBACK


def test_payloads_travel_inside_their_calls_everywhere(
    cluster: dict[str, Any], rayservice: dict[str, Any], tmp_path: Path
) -> None:
    """Bodies, crops and pictures; Ray takes one value for a whole cluster from the environment of each of its nodes."""
    name, value = "RAY_max_direct_call_object_size", str(2**20)
    assert private_environment(tmp_path, {})[name] == value
    assert all(options(cluster[f"{kind}_start_ray_commands"][-1])[name] == value for kind in ("head", "worker"))
    config = rayservice["spec"]["rayClusterConfig"]
    for group in (config["headGroupSpec"], *config["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": name, "value": value} in container["env"]


def test_no_pod_can_be_reached_but_at_the_entrance(rayservice: dict[str, Any]) -> None:
    config = rayservice["spec"]["rayClusterConfig"]
    assert config["authOptions"]["mode"] == "token"
    assert config["networkPolicy"]["mode"] == "DenyAllIngress"
    for kind in ("head", "worker"):
        (rule,) = config["networkPolicy"][kind]["ingressRules"]
        assert [port["port"] for port in rule["ports"]] == [8000]
        assert rule["from"]
    assert config["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_one_image_of_one_version_everywhere(cluster: dict[str, Any], rayservice: dict[str, Any]) -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^FROM rayproject/ray:(\S+)-py311$", dockerfile, flags=re.MULTILINE) == [RAY_VERSION]
    config = rayservice["spec"]["rayClusterConfig"]
    assert config["rayVersion"] == RAY_VERSION
    images = set(re.findall(r"image: (\S+)", MANIFEST.read_text(encoding="utf-8")))
    assert images == {IMAGE} == {cluster["docker"]["image"]} == set(re.findall(r"--tag (\S+)", dockerfile))
    copied = re.findall(r"^COPY --chown=\S+ (.+) \S+$", dockerfile, flags=re.MULTILINE)
    assert all((ROOT / name).exists() for names in copied for name in names.split())


def test_weights_are_fetched_to_where_the_service_looks(cluster: dict[str, Any], rayservice: dict[str, Any]) -> None:
    args = load(ROOT / "serve_config.yaml")["applications"][0]["args"]
    commands = [shlex.split(command) for command in cluster["worker_setup_commands"]]
    for group in rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        commands += [container["command"] for container in group["template"]["spec"]["initContainers"]]
    assert len(commands) == 4
    for words in commands:
        assert words[0] == "likeness"
        arguments = build_parser().parse_args(words[1:])
        assert (arguments.profile, str(arguments.model_dir)) == (args["profile"], args["model_dir"])
        assert arguments.accept_licence == [], "nobody can agree to a licence in somebody's place"


# -- arithmetic --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeType:
    """Nodes of one kind: what Ray counts on each, and how many there may be."""

    name: str
    resources: dict[str, float]
    min_nodes: int
    max_nodes: int

    def num_fitting(self, needs: Mapping[str, float]) -> int:
        """How many replicas with these needs one node takes."""
        return int(min(self.resources.get(name, 0.0) // amount for name, amount in needs.items() if amount))


def launcher_nodes(cluster: dict[str, Any]) -> list[NodeType]:
    return [
        NodeType(
            name=name,
            resources={key: float(value) for key, value in node["resources"].items()},
            min_nodes=node.get("min_workers", 0),
            max_nodes=1 if name == cluster["head_node_type"] else node["max_workers"],
        )
        for name, node in cluster["available_node_types"].items()
    ]


def kubernetes_nodes(rayservice: dict[str, Any]) -> list[NodeType]:
    return [
        NodeType(
            name=group["groupName"],
            resources={key: float(value) for key, value in group["resources"].items()},
            min_nodes=group["minReplicas"],
            max_nodes=group["maxReplicas"],
        )
        for group in rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    ]


@pytest.fixture(params=["cluster.yaml", "rayservice.yaml"])
def nodes(request: pytest.FixtureRequest, cluster: dict[str, Any], rayservice: dict[str, Any]) -> list[NodeType]:
    return launcher_nodes(cluster) if request.param == "cluster.yaml" else kubernetes_nodes(rayservice)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What a replica of a deployment needs, and how many there may be."""

    needs: dict[str, float]
    min_replicas: int
    max_replicas: int


@pytest.fixture
def stages() -> dict[str, Stage]:
    made = {}
    for deployment in load(ROOT / "serve_config.yaml")["applications"][0]["deployments"]:
        options, scaling = deployment["ray_actor_options"], deployment.get("autoscaling_config", {})
        made[deployment["name"]] = Stage(
            needs={
                "CPU": options["num_cpus"],
                "GPU": options.get("num_gpus", 0),
                **options.get("resources", {}),
            },
            min_replicas=scaling.get("min_replicas", deployment.get("num_replicas", 1)),
            max_replicas=scaling.get("max_replicas", deployment.get("num_replicas", 1)),
        )
    return made


def test_there_is_room_for_all_replicas_of_every_stage(nodes: list[NodeType], stages: dict[str, Stage]) -> None:
    for name, stage in stages.items():
        room = sum(node.max_nodes * node.num_fitting(stage.needs) for node in nodes)
        assert room >= stage.max_replicas, name
    gpus = sum(node.max_nodes * node.resources["GPU"] for node in nodes if "gpu_80gb" in node.resources)
    assert stages[FLUX_REPLICA].max_replicas <= gpus


def test_stages_that_share_nodes_do_not_take_each_others_room(nodes: list[NodeType], stages: dict[str, Stage]) -> None:
    """A node that is full of everything it takes has processors for all of it."""
    for node in nodes:
        taken = [node.num_fitting({k: v for k, v in s.needs.items() if k != "CPU"}) for s in stages.values()]
        num_cpus = sum(n * s.needs["CPU"] for n, s in zip(taken, stages.values(), strict=True))
        assert num_cpus <= node.resources["CPU"], node.name


def test_what_always_runs_has_nodes_that_always_run(nodes: list[NodeType], stages: dict[str, Stage]) -> None:
    for name in (INGRESS, FACE_STAGE):
        assert sum(node.min_nodes * node.num_fitting(stages[name].needs) for node in nodes) >= stages[name].min_replicas


def test_gpu_nodes_can_be_given_back(nodes: list[NodeType], stages: dict[str, Stage]) -> None:
    """Nothing but Flux replicas settles there, and none is kept for its own sake."""
    for node in nodes:
        if node.resources.get("GPU"):
            assert node.min_nodes == 0
            assert node.num_fitting(stages[INGRESS].needs) == node.num_fitting(stages[FACE_STAGE].needs) == 0
    assert any(node.num_fitting(stages[FLUX_REPLICA].needs) for node in nodes)


def test_the_smaller_gpu_takes_what_the_comment_says(nodes: list[NodeType], stages: dict[str, Stage]) -> None:
    needs = {name: amount for name, amount in stages[FLUX_REPLICA].needs.items() if name != "gpu_80gb"}
    fitting = [node.name for node in nodes if node.num_fitting(needs | {"gpu_48gb": 1})]
    assert len(fitting) == 1
    assert "l40s" in fitting[0]
