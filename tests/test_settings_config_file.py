"""``serve_config.yaml`` as a whole: ours are good and complete, and what Ray lets through is refused by name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from serve_app.app import build
from serve_app.config_file import ConfigFileError, validate_serve_config
from serve_app.settings import AppSettings, FluxEngineSettings

ROOT = Path(__file__).parent.parent
OURS = sorted(ROOT.glob("serve_config*.yaml"))


@pytest.fixture
def config() -> dict[str, Any]:
    """The full configuration, to be spoilt."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    return loaded


def problems_of(config: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigFileError) as caught:
        validate_serve_config(config)
    return caught.value.problems


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_our_own_files_are_valid_and_stay_on_this_machine(path: Path) -> None:
    checked = validate_serve_config(path)
    assert checked.host == "127.0.0.1"
    assert checked.applications.keys() == {"likeness"}


def test_the_full_file_names_every_knob() -> None:
    args = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"][0]["args"]

    def missing(model: type[BaseModel], values: dict[str, Any], where: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            if name not in values:
                found.append(f"{where}{name}")
                continue
            options = [FluxEngineSettings] if name == "engine" else [field.annotation, *get_args(field.annotation)]
            for option in options:
                if isinstance(option, type) and issubclass(option, BaseModel):
                    found += missing(option, values[name], f"{where}{name}.")
        return found

    assert missing(AppSettings, args, "") == []


def test_every_knob_is_explained() -> None:
    text = (ROOT / "serve_config.yaml").read_text().partition("    args:\n")[2].partition("    deployments:\n")[0]
    lines = [line for line in text.splitlines() if line.strip()]
    bare = [
        line.strip()
        for above, line in zip(["", *lines], lines, strict=False)
        if "#" not in line and not line.rstrip().endswith(":") and "#" not in above and "_quality" not in line
    ]
    assert bare == []


def application(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["applications"][0]
    return found


def ingress(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = application(config)["deployments"][0]
    return found


def flux(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = application(config)["deployments"][2]
    return found


Spoil = Callable[[dict[str, Any]], Any]

SPOILT: dict[str, tuple[Spoil, str]] = {
    "top level": (
        lambda c: c.update(http_option={}),
        "top level: unknown key 'http_option'; did you mean 'http_options'?",
    ),
    "http": (
        lambda c: c["http_options"].update(hots="0.0.0.0"),
        "http_options: unknown key 'hots'; did you mean 'host'?",
    ),
    "application": (
        lambda c: application(c).update(arg={}),
        "applications[0]: unknown key 'arg'; did you mean 'args'?",
    ),
    "deployment": (
        lambda c: flux(c).update(max_ongoing_request=3),
        "applications[0].deployments[2]: unknown key 'max_ongoing_request'; did you mean 'max_ongoing_requests'?",
    ),
    "autoscaling": (
        lambda c: flux(c)["autoscaling_config"].update(max_replica=3),
        "autoscaling_config: unknown key 'max_replica'; did you mean 'max_replicas'?",
    ),
    "actor options": (
        lambda c: flux(c)["ray_actor_options"].update(num_gpu=1),
        "ray_actor_options: unknown key 'num_gpu'; did you mean 'num_gpus'?",
    ),
    "logging": (
        lambda c: c["logging_config"].update(encodin="JSON"),
        "unknown key 'encodin'; did you mean 'encoding'?",
    ),
    "runtime_env": (
        lambda c: application(c).update(runtime_env={"env_var": {}}),
        "applications[0].runtime_env: unknown key 'env_var'; did you mean 'env_vars'?",
    ),
    "args": (
        lambda c: application(c)["args"].update(modle_dir="/m"),
        "applications[0].args: unknown key 'modle_dir'; did you mean 'model_dir'?",
    ),
    "args, deeper": (
        lambda c: application(c)["args"]["face"].update(margn=1),
        "applications[0].args.face: unknown key 'margn'; did you mean 'margin'?",
    ),
    "args, a union": (
        lambda c: application(c)["args"]["engine"].update(devise="cuda"),
        "applications[0].args.engine: unknown key 'devise'; did you mean 'device'?",
    ),
    "wrong type": (
        lambda c: application(c)["args"]["limits"].update(max_in_flight="many"),
        "applications[0].args.limits.max_in_flight: Input should be a valid integer",
    ),
    "unknown profile": (
        lambda c: application(c)["args"].update(profile="flux"),
        "applications[0].args.profile: unknown profile 'flux'; packaged are: embedded, flux-dev",
    ),
    "min above max": (
        lambda c: flux(c)["autoscaling_config"].update(min_replicas=9),
        "autoscaling_config: max_replicas (4) must be greater than or equal to min_replicas (9)",
    ),
    "autoscaling value": (
        lambda c: flux(c)["autoscaling_config"].update(max_replicas=-1),
        "autoscaling_config.max_replicas",
    ),
    "a policy that is nowhere": (
        lambda c: flux(c)["autoscaling_config"]["policy"].update(policy_function="serve_app.scaling.policy:Polcy"),
        "has no attribute 'Polcy'; ours is serve_app.scaling.policy:WorkPolicy",
    ),
    "a policy's knob": (
        lambda c: flux(c)["autoscaling_config"]["policy"]["policy_kwargs"].update(may_ow_s=1.0),
        "policy.policy_kwargs: unknown key 'may_ow_s'; did you mean 'may_owe_s'?",
    ),
    "a time of day without quotes": (
        lambda c: flux(c)["autoscaling_config"]["policy"]["policy_kwargs"]["warm_hours"][0].update(end=1260),
        'policy_kwargs.warm_hours.0.end: must be a time of day in quotes, like "08:00", got 1260',
    ),
    "two delays": (
        lambda c: flux(c)["autoscaling_config"].update(downscale_delay_s=300.0),
        "autoscaling_config.downscale_delay_s: set it to 0.0; the policy's own hold_s says how long to wait",
    ),
    "a factor": (
        lambda c: flux(c)["autoscaling_config"].update(upscaling_factor=2.0),
        "autoscaling_config.upscaling_factor: leave it out; the policy names its number itself",
    ),
    "a sleep too deep": (
        lambda c: flux(c)["autoscaling_config"]["policy"]["policy_kwargs"].update(cold_start_s=400.0),
        "min_replicas is 0 and cold_start_s 400: whoever wakes the stage runs into limits.request_timeout_s (300)",
    ),
    "user_config": (
        lambda c: ingress(c).update(user_config={"price": {}}),
        "deployments[0].user_config: unknown key 'price'; did you mean 'prices'?",
    ),
    "user_config, deeper": (
        lambda c: ingress(c).update(user_config={"limits": {"max_body_bytes": 1000}}),
        "deployments[0].user_config: max_body_bytes is 1000, but a reference of max_reference_bytes",
    ),
    "scaling in user_config": (
        lambda c: ingress(c).update(user_config={"scaling": {"FluxReplica": {"may_ow_s": 1.0}}}),
        "deployments[0].user_config.scaling.FluxReplica: unknown key 'may_ow_s'; did you mean 'may_owe_s'?",
    ),
    "scaling in user_config, together": (
        lambda c: ingress(c).update(user_config={"scaling": {"FluxReplica": {"hold_s": 5000.0}}}),
        "user_config.scaling.FluxReplica: idle_to_zero_s must be at least hold_s (5000), got 1800",
    ),
    "scaling in user_config of nobody": (
        lambda c: ingress(c).update(user_config={"scaling": {"Ingress": {"hold_s": 5.0}}}),
        "user_config.scaling.Ingress: there is no such deployment with the policy serve_app.scaling.policy:WorkPolicy",
    ),
    "user_config of another": (
        lambda c: flux(c).update(user_config={}),
        "deployments[2].user_config: only Ingress takes one",
    ),
    "user_config beyond the shutdown": (
        lambda c: ingress(c).update(user_config={"limits": {"request_timeout_s": 400.0}}),
        "graceful_shutdown_timeout_s is 330: set it to limits.request_timeout_s (400) or more",
    ),
    "user_config beyond what limits count": (
        lambda c: (
            application(c)["args"]["access"]["limits"].update(max_concurrent=2),
            ingress(c).update(user_config={"limits": {"request_timeout_s": 361.0}}),
        ),
        "user_config.limits.request_timeout_s is 361: at most 360 counts in clients' limits; raise args.limits.request",
    ),
    "deployment name": (
        lambda c: flux(c).update(name="Flux"),
        "no deployment 'Flux'; there are Ingress, FaceStage, FluxReplica",
    ),
    "deployment twice": (
        lambda c: application(c)["deployments"].append(copy.deepcopy(flux(c))),
        "deployments[3].name: 'FluxReplica' appears twice",
    ),
    "replicas both ways": (lambda c: flux(c).update(num_replicas=2), "num_replicas"),
    "timeout below ours": (
        lambda c: c["http_options"].update(request_timeout_s=60.0),
        "http_options.request_timeout_s is 60: set it above limits.request_timeout_s (300)",
    ),
    "shutdown below a request": (
        lambda c: flux(c).update(graceful_shutdown_timeout_s=20.0),
        "graceful_shutdown_timeout_s is 20: set it to limits.request_timeout_s (300) or more",
    ),
    "a GPU engine without a GPU": (
        lambda c: flux(c)["ray_actor_options"].update(num_gpus=0),
        "num_gpus is 0, but engine.device is cuda: give it at least 1",
    ),
    "a CPU engine with a GPU": (
        lambda c: application(c)["args"]["engine"].update(device="cpu"),
        "num_gpus is 1, but engine.device is cpu: set 0",
    ),
    "no room for refusals": (
        lambda c: application(c)["args"]["limits"].update(max_in_flight=128),
        "max_ongoing_requests is 128: set it above limits.max_in_flight (128)",
    ),
    "no application of ours": (
        lambda c: application(c).update(import_path="other.module:app"),
        "applications: none has import_path serve_app.app:build",
    ),
}


@pytest.mark.parametrize(("spoil", "says"), SPOILT.values(), ids=SPOILT)
def test_what_is_wrong_is_named(config: dict[str, Any], spoil: Spoil, says: str) -> None:
    spoil(config)
    problems = problems_of(config)
    assert any(says in problem for problem in problems), problems


def test_all_problems_are_told_at_once(config: dict[str, Any]) -> None:
    spoils = [SPOILT[name][0] for name in ("http", "deployment", "args", "min above max")]
    for spoil in spoils:
        spoil(config)
    assert len(problems_of(config)) == len(spoils)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("applications: [", "expected the node content"),
        ("- a list", "expected a mapping"),
        ("", "expected a mapping"),
        ("http_options: {port: 1}\nhttp_options: {port: 2}", "key 'http_options' appears twice"),
        ("applications: 3", "applications"),
        ("{}", "applications"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigFileError, match=says):
        validate_serve_config(path)


def test_ray_sees_the_settings_type() -> None:
    """As a string it would be ignored, and the application built from an unchecked dictionary."""
    assert inspect.signature(build).parameters["args"].annotation is AppSettings
