"""Checks a whole ``serve_config.yaml`` before it is deployed: what Ray lets through, and what Ray can't know.

Ray's own schema ignores unknown keys at nearly every level, so ``max_replica: 4`` deploys without a word and without
effect; it takes ``min_replicas`` above ``max_replicas``, and finds misspelt deployment names only after the deploy.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from engine.errors import ModelLoadError
from serve_app.config_deployments import deployment_problems, laid_over, sentences, together_problems
from serve_app.scaling.settings import POLICY
from serve_app.settings import AppSettings
from serve_app.strict import unknown_key

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

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
    schema, problems = _as_ray_reads(config)
    applications: dict[str, AppSettings] = {}
    for index, application in enumerate(config["applications"]):
        where = f"applications[{index}]"
        problems += _runtime_env_problems(application.get("runtime_env"), f"{where}.runtime_env")
        if application["import_path"] == IMPORT_PATH:
            settings, found = _our_settings(application, where, schema.http_options.request_timeout_s)
            problems += found
            if settings is not None:
                applications[application.get("name", schema.applications[index].name)] = settings
    if not problems and not applications:
        problems.append(f"applications: none has import_path {IMPORT_PATH}")
    if problems:
        raise ConfigFileError(tuple(problems))
    return CheckedConfig(host=schema.http_options.host, port=schema.http_options.port, applications=applications)


def _as_ray_reads(config: Mapping[str, Any]) -> tuple[ServeDeploySchema, list[str]]:
    """The configuration by Serve's own schema, and the keys that this overlooks. Raises ConfigFileError."""
    from ray.serve.schema import ServeDeploySchema

    problems = _unknown_keys(config, ServeDeploySchema, "")
    try:
        with warnings.catch_warnings():
            # metrics_interval_s is called deprecated, and nothing else sets how often Serve's processes report.
            warnings.simplefilter("ignore", DeprecationWarning)
            return ServeDeploySchema.model_validate(dict(config)), problems
    except (ValidationError, ValueError) as error:
        raise ConfigFileError((*problems, *sentences(error, ""))) from None
    except (ImportError, AttributeError) as error:  # Serve's schema imports policies and routers by their names
        raise ConfigFileError(
            (*problems, f"autoscaling_config.policy.policy_function: {error}; ours is {POLICY}")
        ) from None


def _our_settings(
    application: Mapping[str, Any], where: str, http_timeout_s: float | None
) -> tuple[AppSettings | None, list[str]]:
    """The settings of an application of ours, None where they are no settings; and all that is wrong with it."""
    deployments = application.get("deployments", [])
    problems = deployment_problems(deployments, f"{where}.deployments")
    try:
        settings = AppSettings.model_validate(application.get("args", {}))
        settings.load_profile()
    except ValidationError as error:
        return None, problems + sentences(error, f"{where}.args")
    except ModelLoadError as error:
        return None, [*problems, f"{where}.args.profile: {error}"]
    settings, live_problems = laid_over(settings, deployments, f"{where}.deployments")
    problems += live_problems
    problems += together_problems(settings, deployments, http_timeout_s, where)
    return settings, problems


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
