"""Every knob of the application: the ``args:`` of ``serve_config.yaml``, checked before anything starts.

Ray's own knobs (replicas, resources, health checks) stay where Ray has them, under ``deployments:`` of the same file:
Serve restarts every replica of every stage when ``args:`` change, and none when ``deployments:`` change, so an
operator who wants one more GPU replica must not find that number here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from engine.config import DeviceName, DtypeName, EngineConfig
from engine.memory import MemoryProfileName
from engine.profile import ModelProfile, load_profile
from engine.scheduler import PolicyName
from serve_app.access.settings import AccessSettings
from serve_app.stages import FacePolicy
from serve_app.strict import StrictSettings

_MIB = 2**20
_BASE64_GROWTH = 4 / 3
_ANSWER_ALLOWANCE_S = 60.0
"""For a caller that takes its time to read the answer."""

_BODY_ALLOWANCE_BYTES = 128 * 1024
"""What a body holds besides the picture: two prompts of a few thousand characters, in any script, and the names."""


class _AdmissionSettings(StrictSettings):
    """What an engine of either kind takes in, and in which order."""

    policy: PolicyName = "shortest_remaining"
    max_waiting: int = Field(default=256, ge=1)
    max_queued_device_s: float = Field(default=300.0, gt=0.0)
    max_step_s: float = Field(default=60.0, gt=0.0)


class FluxEngineSettings(_AdmissionSettings):
    """The real engine."""

    kind: Literal["flux"] = "flux"
    device: DeviceName = "cuda"
    dtype: DtypeName = "bfloat16"
    memory: MemoryProfileName = "resident"
    cpu_threads: int | None = Field(default=None, ge=1)
    max_batch_samples: int = Field(default=8, ge=2)
    max_batch_tokens: int = Field(default=8192, ge=1)
    max_recorded_shapes: int = Field(default=12, ge=0)
    text_cache_bytes: int = Field(default=256 * _MIB, ge=0)
    image_cache_bytes: int = Field(default=256 * _MIB, ge=0)

    def engine_config(self, profile: ModelProfile, model_dir: str) -> EngineConfig:
        """These settings as the engine takes them."""
        values = self.model_dump(exclude={"kind", "max_step_s"})
        return EngineConfig(profile=profile, model_dir=model_dir, **values)


class FakeEngineSettings(_AdmissionSettings):
    """An engine without a network, that takes the time it is told: for tests and for sizing a cluster."""

    kind: Literal["fake"]
    step_s: float = Field(default=0.0, ge=0.0)
    token_s: float = Field(default=0.0, ge=0.0)
    max_running: int = Field(default=8, ge=1)
    device_name: str = Field(default="CPU", description="What it says it runs on, so that prices can be rehearsed.")

    @property
    def device(self) -> DeviceName:
        """It needs no accelerator."""
        return "cpu"


EngineSettings = Annotated[FluxEngineSettings | FakeEngineSettings, Field(discriminator="kind")]


class FaceSettings(StrictSettings):
    """The face stage."""

    policy: FacePolicy = "prefer"
    min_confidence: float = Field(default=0.7, ge=0.0, le=1.0)
    margin: float = Field(default=0.35, ge=0.0)
    cpu_encoder: bool = True
    cache_bytes: int = Field(default=64 * _MIB, ge=0)


class IdentitySettings(StrictSettings):
    """The stage that measures how alike faces are; needs ``pip install 'likeness[identity]'`` where it runs.

    ``max_candidates`` bounds ``num_candidates`` of a request.
    """

    enabled: bool = False
    max_candidates: int = Field(default=4, ge=1, le=16)
    cache_bytes: int = Field(default=4 * _MIB, ge=0)


class LimitSettings(StrictSettings):
    """What one request may ask of the HTTP side. Limits that a model has are its profile's."""

    max_body_bytes: int = Field(default=28 * _MIB, ge=1)
    max_reference_bytes: int = Field(default=20 * _MIB, ge=1)
    max_reference_pixels: int = Field(default=25_000_000, ge=256, le=89_000_000)
    max_in_flight: int = Field(default=64, ge=1)
    body_timeout_s: float = Field(default=30.0, gt=0.0)
    request_timeout_s: float = Field(default=300.0, gt=0.0)

    @property
    def max_visit_s(self) -> float:
        """How long a request can be here at most, from its headers to the end of its answer."""
        return self.request_timeout_s + _ANSWER_ALLOWANCE_S

    @model_validator(mode="after")
    def _body_holds_reference(self) -> LimitSettings:
        needed = int(self.max_reference_bytes * _BASE64_GROWTH) + _BODY_ALLOWANCE_BYTES
        if self.max_body_bytes < needed:
            raise ValueError(
                f"max_body_bytes is {self.max_body_bytes}, but a reference of max_reference_bytes "
                f"({self.max_reference_bytes}) in base64 with a prompt needs {needed}"
            )
        return self


class PictureSettings(StrictSettings):
    """How pictures are written."""

    jpeg_quality: int = Field(default=95, ge=1, le=100)
    webp_quality: int = Field(default=90, ge=1, le=100)


class PriceSettings(StrictSettings):
    """What a device costs while it works, for ``X-Cost-USD``.

    ``usd_per_hour`` maps a device's name, or a part of it in any case, to its price; the longest name that fits counts.
    """

    usd_per_hour: dict[str, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]] = Field(default_factory=dict)
    default_usd_per_hour: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)

    def cost_usd(self, device_name: str, device_s: float) -> float:
        """The price of so many seconds on a device."""
        fits = [name for name in self.usd_per_hour if name.lower() in device_name.lower()]
        price = self.usd_per_hour[max(fits, key=len)] if fits else self.default_usd_per_hour
        return device_s * price / 3600.0


class TracingSettings(StrictSettings):
    """Traces of requests (OpenTelemetry), sent over OTLP/HTTP; needs ``pip install 'likeness[tracing]'``.

    ``otlp_endpoint`` is a collector's full address, such as ``http://collector:4318/v1/traces``; empty: no traces.
    ``sample_ratio`` is the share of requests traced where the caller's own trace does not decide.
    """

    otlp_endpoint: str = Field(default="", pattern=r"^(https?://\S+)?$")
    sample_ratio: float = Field(default=1.0, ge=0.0, le=1.0)
    service_name: str = "likeness"
    timeout_s: float = Field(default=10.0, gt=0.0)


class AppSettings(StrictSettings):
    """The whole application."""

    profile: str = Field(description="A packaged profile's name, or the path of a profile's TOML file.")
    model_dir: str = Field(default="", description="Folder of the profile's files, on every machine with a replica.")
    engine: EngineSettings = Field(default_factory=FluxEngineSettings)
    face: FaceSettings = Field(default_factory=FaceSettings)
    identity: IdentitySettings = Field(default_factory=IdentitySettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    pictures: PictureSettings = Field(default_factory=PictureSettings)
    prices: PriceSettings = Field(default_factory=PriceSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    access: AccessSettings = Field(default_factory=AccessSettings)

    @model_validator(mode="after")
    def _files_are_named(self) -> AppSettings:
        if not self.model_dir and self.engine.kind == "flux":
            raise ValueError("model_dir is required: the folder that holds the profile's files")
        if not self.model_dir and self.face.cpu_encoder:
            raise ValueError("face.cpu_encoder needs model_dir; set it, or face.cpu_encoder: false")
        return self

    def load_profile(self) -> ModelProfile:
        """The model's profile. Raises ModelLoadError where there is none, or a broken one."""
        return load_profile(self.profile)
