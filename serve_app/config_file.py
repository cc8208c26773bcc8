"""Checks a whole ``serve_config.yaml`` before it is deployed: what Ray lets through, and what Ray can't know.

Ray's own schema ignores unknown keys at nearly every level, so ``max_replica: 4`` deploys without a word and without
effect; it takes ``min_replicas`` above ``max_replicas``, and finds misspelt deployment names only after the deploy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from serve_app.settings import AppSettings
from serve_app.stages import DEPLOYMENTS, FLUX_REPLICA, INGRESS
from serve_app.strict import unknown_key

IMPORT_PATH = "serve_app.app:build"


class ConfigFileError(Exception):
    """A configuration that must not be deployed. ``problems`` holds one sentence each, with the key's path."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CheckedConfig:
    """A configuration that passed: where it will listen, and the settings of every application of ours by name."""

    host: str
    port: int
    applications: dict[str, AppSettings]


def validate_serve_config(source: str | Path | Mapping[str, Any]) -> CheckedConfig:
    """Check a configuration file, or its content as a mapping, strictly and in one go.

    Raises:
        ConfigFileError: with every problem found, not only the first.
        OSError: the file can't be read.
    """
    config = source if isinstance(source, Mapping) else _read_yaml(Path(source))
    from ray.serve.schema import ServeDeploySchema

    problems = _unknown_keys(config, ServeDeploySchema, "")
    try:
        schema = ServeDeploySchema.model_validate(dict(config))
    except (ValidationError, ValueError) as error:
        raise ConfigFileError((*problems, *_sentences(error, ""))) from None
    applications: dict[str, AppSettings] = {}
    for index, application in enumerate(config["applications"]):
        where = f"applications[{index}]"
        problems += _runtime_env_problems(application.get("runtime_env"), f"{where}.runtime_env")
        if application["import_path"] != IMPORT_PATH:
            continue
        deployments = application.get("deployments", [])
        problems += _deployment_problems(deployments, f"{where}.deployments")
        try:
            settings = AppSettings.model_validate(application.get("args", {}))
            settings.load_profile()
        except ValidationError as error:
            problems += _sentences(error, f"{where}.args")
        except Exception as error:
            problems.append(f"{where}.args.profile: {error}")
        else:
            problems += _contradictions(settings, deployments, schema.http_options.request_timeout_s, where)
            applications[application.get("name", schema.applications[index].name)] = settings
    if not problems and not applications:
        problems.append(f"applications: none has import_path {IMPORT_PATH}")
    if problems:
        raise ConfigFileError(tuple(problems))
    return CheckedConfig(host=schema.http_options.host, port=schema.http_options.port, applications=applications)


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigFileError((f"{path.name}: {error}",)) from None
    if not isinstance(config, dict):
        raise ConfigFileError((f"{path.name}: expected a mapping at the top",))
    return config


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key that appears twice is an error, where PyYAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} appears twice", node.start_mark)
        return mapping


def _unknown_keys(value: Any, annotation: Any, where: str) -> list[str]:
    """Keys that a pydantic model, or any model nested in it, does not have. Free-form dictionaries are left alone."""
    model, item = _model_of(annotation), _item_of(annotation)
    if item is not None and isinstance(value, list):
        return [p for i, entry in enumerate(value) for p in _unknown_keys(entry, item, f"{where}[{i}]")]
    if model is None or not isinstance(value, Mapping):
        return []
    problems = []
    for key, entry in value.items():
        path = f"{where}.{key}".lstrip(".")
        if key in model.model_fields:
            problems += _unknown_keys(entry, model.model_fields[key].annotation, path)
        else:
            problems.append(f"{where or 'top level'}: {unknown_key(key, tuple(model.model_fields))}")
    return problems


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Union else (annotation,)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    models = [a for a in _alternatives(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
    return models[0] if models else None


def _item_of(annotation: Any) -> Any:
    lists = [a for a in _alternatives(annotation) if get_origin(a) is list]
    return get_args(lists[0])[0] if lists else None


def _runtime_env_problems(runtime_env: Any, where: str) -> list[str]:
    from ray.runtime_env import RuntimeEnv

    known = tuple(sorted(name for name in RuntimeEnv.known_fields if not name.startswith("_")))
    return [f"{where}: {unknown_key(key, known)}" for key in runtime_env or {} if key not in known]


def _deployment_problems(deployments: list[dict[str, Any]], where: str) -> list[str]:
    from ray.serve.config import AutoscalingConfig

    problems = []
    names = [deployment["name"] for deployment in deployments]
    for index, deployment in enumerate(deployments):
        path = f"{where}[{index}]"
        if deployment["name"] not in DEPLOYMENTS:
            problems.append(f"{path}.name: no deployment {deployment['name']!r}; there are {', '.join(DEPLOYMENTS)}")
        if names.count(deployment["name"]) > 1 and names.index(deployment["name"]) != index:
            problems.append(f"{path}.name: {deployment['name']!r} appears twice")
        autoscaling = deployment.get("autoscaling_config")
        if autoscaling is not None:
            try:
                AutoscalingConfig(**autoscaling)
            except (ValidationError, ValueError, TypeError) as error:
                problems += _sentences(error, f"{path}.autoscaling_config")
    return problems


def _contradictions(
    settings: AppSettings, deployments: list[dict[str, Any]], http_timeout_s: float | None, where: str
) -> list[str]:
    """Values that are fine alone and not together."""
    problems = []
    request_s = settings.limits.request_timeout_s
    if http_timeout_s is not None and http_timeout_s <= request_s:
        problems.append(
            f"http_options.request_timeout_s is {http_timeout_s:g}: set it above limits.request_timeout_s "
            f"({request_s:g}), or leave it out, or callers get Ray's own error instead of the contract's"
        )
    for index, deployment in enumerate(deployments):
        path = f"{where}.deployments[{index}]"
        shutdown_s = deployment.get("graceful_shutdown_timeout_s")
        if shutdown_s is not None and shutdown_s < request_s:
            problems.append(
                f"{path}.graceful_shutdown_timeout_s is {shutdown_s:g}: set it to limits.request_timeout_s "
                f"({request_s:g}) or more, or an update kills requests that were accepted"
            )
        room = deployment.get("max_ongoing_requests")
        if deployment["name"] == INGRESS and room is not None and room <= settings.limits.max_in_flight:
            problems.append(
                f"{path}.max_ongoing_requests is {room}: set it above limits.max_in_flight "
                f"({settings.limits.max_in_flight}), or refusals and /health wait behind pictures"
            )
        num_gpus = (deployment.get("ray_actor_options") or {}).get("num_gpus")
        if deployment["name"] == FLUX_REPLICA and num_gpus is not None:
            needs_gpu = settings.engine.device == "cuda"
            if needs_gpu != (num_gpus > 0):
                problems.append(
                    f"{path}.ray_actor_options.num_gpus is {num_gpus:g}, but engine.device is "
                    f"{settings.engine.device}: {'give it at least 1' if needs_gpu else 'set 0'}"
                )
    return problems


def _sentences(error: Exception, where: str) -> list[str]:
    if not isinstance(error, ValidationError):
        return [f"{where}: {error}".lstrip(": ")]
    sentences = []
    for detail in error.errors(include_url=False, include_input=False):
        # Pydantic puts the tag of a union among the names; it is no key of the file.
        path = ".".join(str(part) for part in detail["loc"] if part not in ("flux", "fake"))
        message = detail["msg"].removeprefix("Value error, ")
        sentences.append(": ".join(part for part in (f"{where}.{path}".strip("."), message) if part))
    return sentences
