"""The application's settings: strict at every level, and wrong combinations are named."""

from __future__ import annotations

import types
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from engine.config import EngineConfig
from serve_app.settings import AppSettings, FluxEngineSettings, PriceSettings
from tests.asgi import FAKE_SETTINGS, embedded_profile


def merged(path: str, value: Any) -> dict[str, Any]:
    """``FAKE_SETTINGS`` with a value at a dotted path."""
    settings: dict[str, Any] = {k: dict(v) if isinstance(v, dict) else v for k, v in FAKE_SETTINGS.items()}
    *sections, name = path.split(".")
    table = settings
    for section in sections:
        table = table.setdefault(section, {})
    table[name] = value
    return settings


def test_a_profile_and_a_folder_are_enough() -> None:
    settings = AppSettings.model_validate({"profile": "flux-dev", "model_dir": "/models/flux-dev"})
    assert settings.engine.kind == "flux"
    assert settings.face.policy == "prefer"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("modle_dir", "model_dir"),
        ("engine.step", "step_s"),
        ("face.polcy", "policy"),
        ("limits.max_body_byte", "max_body_bytes"),
        ("pictures.jpg_quality", "jpeg_quality"),
        ("prices.default_usd_hour", "default_usd_per_hour"),
    ],
)
def test_an_unknown_key_is_refused_with_what_was_meant(path: str, meant: str) -> None:
    with pytest.raises(ValidationError, match=rf"unknown key '{path.rpartition('.')[2]}'; did you mean '{meant}'\?"):
        AppSettings.model_validate(merged(path, 1))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("face.policy", "sometimes"),
        ("face.cpu_encoder", "yes"),
        ("face.cache_bytes", "64MB"),
        ("face.cache_bytes", -1),
        ("limits.request_timeout_s", 0),
        ("limits.max_in_flight", 1.5),
        ("pictures.jpeg_quality", 101),
        ("prices.usd_per_hour", {"L40S": -1}),
        ("prices.default_usd_per_hour", float("nan")),
        ("engine.kind", "real"),
        ("engine.step_s", -0.1),
        ("profile", None),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(path: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=path.rpartition(".")[2]):
        AppSettings.model_validate(merged(path, value))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"profile": "embedded"}, "model_dir is required"),
        (merged("face.cpu_encoder", True), "face.cpu_encoder needs model_dir"),
        (merged("limits", {"max_body_bytes": 1_000_000, "max_reference_bytes": 900_000}), "in base64"),
    ],
)
def test_what_contradicts_itself_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        AppSettings.model_validate(settings)


def test_engine_settings_become_the_engines_config() -> None:
    settings = FluxEngineSettings(device="cpu", dtype="float32", max_batch_samples=4, cpu_threads=2)
    config = settings.engine_config(embedded_profile(), "/models")
    assert (config.device, config.max_batch_samples, config.cpu_threads) == ("cpu", 4, 2)


def test_every_engine_knob_can_be_set() -> None:
    knobs = set(EngineConfig.__dataclass_fields__) - {"profile", "model_dir"}
    assert knobs == set(FluxEngineSettings.model_fields) - {"kind", "max_step_s"}, "the last is its loop's"


def test_the_longest_name_that_fits_sets_the_price() -> None:
    prices = PriceSettings(usd_per_hour={"h100": 3.6, "H100 80GB HBM3": 7.2, "L40S": 1.98}, default_usd_per_hour=0.36)
    assert prices.cost_usd("NVIDIA H100 80GB HBM3", 1.0) == pytest.approx(0.002)
    assert prices.cost_usd("NVIDIA H100 PCIe", 1.0) == pytest.approx(0.001)
    assert prices.cost_usd("NVIDIA L40S", 60.0) == pytest.approx(0.033)
    assert prices.cost_usd("CPU", 10.0) == pytest.approx(0.001)


def settings_models(model: type[BaseModel]) -> set[type[BaseModel]]:
    """A model and all models in its fields."""
    found = {model}
    for field in model.model_fields.values():
        options = get_args(field.annotation) if isinstance(field.annotation, types.UnionType) else (field.annotation,)
        for option in options:
            if isinstance(option, type) and issubclass(option, BaseModel):
                found |= settings_models(option)
    return found


def test_every_section_is_strict() -> None:
    models = settings_models(AppSettings)
    assert len(models) == 11
    for model in models:
        assert model.model_config["extra"] == "forbid"
        assert model.model_config["strict"] is True
