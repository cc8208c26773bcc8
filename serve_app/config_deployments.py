"""Checks the ``deployments:`` of a configuration: Ray's own knobs for each stage, and how they fit our settings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from serve_app.live_settings import LiveSettings
from serve_app.scaling.settings import POLICY, ScalingSettings
from serve_app.settings import AppSettings
from serve_app.stages import DEPLOYMENTS, FLUX_REPLICA, IDENTITY_STAGE, INGRESS, OPTIONAL_DEPLOYMENTS

Deployments = Sequence[Mapping[str, Any]]
"""The ``deployments:`` of one application."""


def deployment_problems(deployments: Deployments, where: str) -> list[str]:
    """What is wrong with each alone."""
    problems = []
    names = [deployment["name"] for deployment in deployments]
    for index, deployment in enumerate(deployments):
        path, name = f"{where}[{index}]", deployment["name"]
        if name not in (known := (*DEPLOYMENTS, *OPTIONAL_DEPLOYMENTS)):
            problems.append(f"{path}.name: no deployment {name!r}; there are {', '.join(known)}")
        if name in names[:index]:
            problems.append(f"{path}.name: {name!r} appears twice")
        if name != INGRESS and deployment.get("user_config") is not None:
            problems.append(f"{path}.user_config: only {INGRESS} takes one")
        if (autoscaling := deployment.get("autoscaling_config")) is not None:
            problems += _autoscaling_problems(autoscaling, f"{path}.autoscaling_config")
    return problems


def laid_over(settings: AppSettings, deployments: Deployments, where: str) -> tuple[AppSettings, list[str]]:
    """The settings with the ingress's ``user_config`` laid over them, and what is wrong with that."""
    for index, deployment in enumerate(deployments):
        if deployment["name"] == INGRESS and (user_config := deployment.get("user_config")) is not None:
            path = f"{where}[{index}].user_config"
            try:
                live = LiveSettings.model_validate(user_config)
                problems = _live_scaling_problems(live, deployments, f"{path}.scaling")
                return live.over(settings), problems + _live_limit_problems(live, settings, f"{path}.limits")
            except ValidationError as error:
                return settings, sentences(error, path)
    return settings, []


def _live_limit_problems(live: LiveSettings, settings: AppSettings, where: str) -> list[str]:
    """Who counts clients' limits is told at the start for how long a request can be here, and forgets older ones."""
    request_s, max_visit_s = live.limits.request_timeout_s, settings.limits.max_visit_s
    has_limits = bool(settings.access.key_file) or settings.access.limits.are_any
    if request_s is None or request_s <= max_visit_s or not has_limits:
        return []
    return [
        f"{where}.request_timeout_s is {request_s:g}: at most {max_visit_s:g} counts in clients' limits; raise "
        f"args.limits.request_timeout_s ({settings.limits.request_timeout_s:g}) itself"
    ]


def _live_scaling_problems(live: LiveSettings, deployments: Deployments, where: str) -> list[str]:
    problems = []
    policies = {d["name"]: (d.get("autoscaling_config") or {}).get("policy") or {} for d in deployments}
    for name, changes in live.scaling.items():
        policy = policies.get(name, {})
        if policy.get("policy_function") != POLICY:
            problems.append(f"{where}.{name}: there is no such deployment with the policy {POLICY}")
            continue
        try:
            ScalingSettings.model_validate({**policy.get("policy_kwargs", {}), **changes})
        except ValidationError as error:
            problems += sentences(error, f"{where}.{name}")
    return problems


def _autoscaling_problems(autoscaling: Mapping[str, Any], where: str) -> list[str]:
    from ray.serve.config import AutoscalingConfig

    try:
        with warnings.catch_warnings():
            # metrics_interval_s is called deprecated, and nothing else sets how often Serve's processes report.
            warnings.simplefilter("ignore", DeprecationWarning)
            AutoscalingConfig(**autoscaling)
    except (ValidationError, ValueError, TypeError) as error:
        return sentences(error, where)
    policy = autoscaling.get("policy") or {}
    if policy.get("policy_function") != POLICY:
        return []
    problems = []
    for name in ("upscale_delay_s", "downscale_delay_s"):
        if autoscaling.get(name) != 0:
            problems.append(f"{where}.{name}: set it to 0.0; the policy's own hold_s says how long to wait")
    for name in ("upscaling_factor", "downscaling_factor", "smoothing_factor", "downscale_to_zero_delay_s"):
        if autoscaling.get(name) is not None:
            problems.append(f"{where}.{name}: leave it out; the policy names its number itself")
    try:
        ScalingSettings.model_validate(policy.get("policy_kwargs") or {})
    except ValidationError as error:
        problems += sentences(error, f"{where}.policy.policy_kwargs")
    return problems


def together_problems(
    settings: AppSettings, deployments: Deployments, http_timeout_s: float | None, where: str
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
        if deployment["name"] == INGRESS:
            problems += _ingress_problems(settings, deployment, path)
        if deployment["name"] == IDENTITY_STAGE and not settings.identity.enabled:
            problems.append(f"{path}.name: there is no {IDENTITY_STAGE} unless args.identity.enabled is true")
        problems += _sleep_problems(settings, deployment, path)
        if deployment["name"] == FLUX_REPLICA:
            problems += _gpu_problems(settings, deployment, path)
    return problems


def _ingress_problems(settings: AppSettings, deployment: Mapping[str, Any], path: str) -> list[str]:
    room, max_in_flight = deployment.get("max_ongoing_requests"), settings.limits.max_in_flight
    if room is None or room > max_in_flight:
        return []
    return [
        f"{path}.max_ongoing_requests is {room}: set it above limits.max_in_flight ({max_in_flight}), or refusals and "
        "/health wait behind pictures"
    ]


def _sleep_problems(settings: AppSettings, deployment: Mapping[str, Any], path: str) -> list[str]:
    autoscaling = deployment.get("autoscaling_config") or {}
    kwargs = (autoscaling.get("policy") or {}).get("policy_kwargs") or {}
    start_s, request_s = kwargs.get("cold_start_s", 0.0), settings.limits.request_timeout_s
    if autoscaling.get("min_replicas", 1) or not isinstance(start_s, int | float) or start_s < request_s:
        return []
    return [
        f"{path}.autoscaling_config.min_replicas is 0 and cold_start_s {start_s:g}: whoever wakes the stage runs into "
        f"limits.request_timeout_s ({request_s:g}); raise that, or keep a replica"
    ]


def _gpu_problems(settings: AppSettings, deployment: Mapping[str, Any], path: str) -> list[str]:
    num_gpus = (deployment.get("ray_actor_options") or {}).get("num_gpus")
    if num_gpus is None or settings.engine.kind == "fake":  # which may stand in for an engine of either kind
        return []
    needs_gpu = settings.engine.device == "cuda"
    if needs_gpu == (num_gpus > 0):
        return []
    return [
        f"{path}.ray_actor_options.num_gpus is {num_gpus:g}, but engine.device is {settings.engine.device}: "
        f"{'give it at least 1' if needs_gpu else 'set 0'}"
    ]


def sentences(error: Exception, where: str) -> list[str]:
    """An error's sentences, each with the key's path in front."""
    if not isinstance(error, ValidationError):
        return [f"{where}: {error}".lstrip(": ")]
    found = []
    for detail in error.errors(include_url=False, include_input=False):
        # Pydantic puts the tag of a union among the names; it is no key of the file.
        path = ".".join(str(part) for part in detail["loc"] if part not in ("flux", "fake"))
        message = detail["msg"].removeprefix("Value error, ")
        found.append(": ".join(part for part in (f"{where}.{path}".strip("."), message) if part))
    return found
