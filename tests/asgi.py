"""An HTTP client for the ingress without a server, and stages that run in this process."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import functools
import io
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from fastapi import FastAPI
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from engine.fake import FakeEngine
from engine.profile import ModelProfile, load_profile
from serve_app.errors import StageUnavailableError
from serve_app.face_stage import FaceStage, open_tools
from serve_app.flux_replica import FluxReplica, OpenEngine
from serve_app.ingress import make_app
from serve_app.metrics.ingress import IngressMetrics
from serve_app.metrics.ledger import Ledger, LocalExchange
from serve_app.metrics.recorder import Recorder
from serve_app.sample import SAMPLE_FACE_URL
from serve_app.settings import AppSettings, FakeEngineSettings
from serve_app.stages import (
    DEPLOYMENTS,
    IDENTITY_STAGE,
    DrawJob,
    DrawResult,
    FaceJob,
    FaceResult,
    IdentityJob,
    IdentityResult,
    OnDrawEvent,
    StageStarting,
    StageStatus,
)

FAKE_SETTINGS = {
    "profile": "embedded",
    "engine": {"kind": "fake", "step_s": 0.002, "device_name": "NVIDIA L40S"},
    "face": {"cpu_encoder": False},
    "prices": {"usd_per_hour": {"L40S": 1.98}},
}
URL = "/flux-ipadapter-faceid"


def picture_url(colour: tuple[int, int, int] = (200, 150, 120), *, format_: str = "PNG", side_px: int = 32) -> str:
    """A data URL of a plain picture."""
    return data_url(picture(colour, format_=format_, side_px=side_px), f"image/{format_.lower()}")


def picture(colour: tuple[int, int, int] = (200, 150, 120), *, format_: str = "PNG", side_px: int = 32) -> bytes:
    """A plain picture as a file."""
    buffer = io.BytesIO()
    Image.new("RGB", (side_px, side_px), colour).save(buffer, format=format_)
    return buffer.getvalue()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    """Any bytes as a data URL."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def body(**changes: Any) -> dict[str, Any]:
    """A good request, small and quick, with changes; a value of ``...`` leaves the field out."""
    fields = {"prompt": "a portrait", "reference_image": SAMPLE_FACE_URL, "width": 128, "height": 96, "steps": 2}
    return {name: value for name, value in (fields | changes).items() if value is not ...}


async def no_identity(job: IdentityJob) -> IdentityResult:
    """What an application without that stage answers."""
    raise StageUnavailableError(f"this application has no {IDENTITY_STAGE}")


@dataclasses.dataclass(kw_only=True)
class StagesInProcess:
    """A :class:`serve_app.stages.Backend`: the real stages, the replica's around a fake engine.

    Attributes:
        prepare_error, draw_error: raised instead of an answer.
        not_ready: stages that say so.
        being_started: the stage that requests are told to wait for.
        identity: the stage that measures faces; none by default.
    """

    engine: FakeEngine
    face_stage: FaceStage
    replica: FluxReplica
    prepare_error: BaseException | None = None
    draw_error: BaseException | None = None
    not_ready: frozenset[str] = frozenset()
    being_started: StageStarting | None = None
    identity: Callable[[IdentityJob], Awaitable[IdentityResult]] = no_identity
    drawn: list[DrawJob] = dataclasses.field(default_factory=list)
    prepared: list[FaceJob] = dataclasses.field(default_factory=list)

    async def prepare(self, job: FaceJob) -> FaceResult:
        self.prepared.append(job)
        if self.prepare_error is not None:
            raise self.prepare_error
        return await self.face_stage.prepare(job)

    async def draw(self, job: DrawJob, on_event: OnDrawEvent | None = None) -> DrawResult:
        self.drawn.append(job)
        if self.draw_error is not None:
            raise self.draw_error
        return await self.replica.draw(job, on_event)

    async def identify(self, job: IdentityJob) -> IdentityResult:
        return await self.identity(job)

    async def starting(self) -> StageStarting | None:
        return self.being_started

    async def statuses(self) -> tuple[StageStatus, ...]:
        return tuple(
            StageStatus(name=name, is_ready=name not in self.not_ready, reason="starting" * (name in self.not_ready))
            for name in DEPLOYMENTS
        )


@dataclasses.dataclass(kw_only=True)
class Service:
    """The application, its stages, and a client for it."""

    app: FastAPI
    stages: StagesInProcess
    client: httpx.AsyncClient
    metrics: IngressMetrics
    profile: ModelProfile

    async def draw(self, headers: dict[str, str] | None = None, **changes: Any) -> httpx.Response:
        """POST a good request with changes."""
        return await self.client.post(URL, json=body(**changes), headers=headers or {})

    async def metric(self, name: str, **labels: str) -> float:
        """A sum of samples of ``/metrics`` that carry these labels."""
        return metric_sum((await self.client.get("/metrics")).text, name, **labels)


def with_service(test: Callable[[Service], Any], *, held: HeldSteps | None = None, **changes: Any) -> None:
    """Run an async test against a fresh service, with changes to its settings, and with an engine's steps held."""
    sleep, clock = (time.sleep, time.monotonic) if held is None else (held.sleep, held.clock)

    async def run() -> None:
        settings = AppSettings.model_validate(FAKE_SETTINGS | changes)
        profile = settings.load_profile()
        assert isinstance(settings.engine, FakeEngineSettings)
        device_name = settings.engine.device_name
        engine_settings = settings.engine.model_dump(exclude={"kind", "device_name", "max_step_s"})
        engine = FakeEngine(profile, **engine_settings, sleep=sleep, clock=clock)
        tools = functools.partial(
            open_tools, profile_name=settings.profile, model_dir="", settings=settings.face, limits=settings.limits
        )
        face_stage = FaceStage(tools, cache_bytes=settings.face.cache_bytes)
        recorder = Recorder()
        replica = FluxReplica(lambda: OpenEngine(engine=engine, device_name=device_name), lambda: recorder)
        stages = StagesInProcess(engine=engine, face_stage=face_stage, replica=replica)
        exchange = LocalExchange(Ledger(clock=time.monotonic), others=[recorder.report])
        metrics = IngressMetrics(exchange=exchange)
        app_clock = time.perf_counter if held is None else held.clock
        app = make_app(backend=stages, settings=settings, profile=profile, metrics=metrics, clock=app_clock)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://likeness") as client:
            try:
                await test(Service(app=app, stages=stages, client=client, metrics=metrics, profile=profile))
            finally:
                if held is not None:
                    held.let_go_of_all()
                await replica.close()

    asyncio.run(run())


class HeldSteps:
    """The ``sleep`` and ``clock`` of a fake engine whose steps end only when the test lets them; then they took their
    time, though none has passed."""

    def __init__(self) -> None:
        self._gate = threading.Semaphore(0)
        self._is_open = False
        self._now_s = 0.0
        self.num_begun = 0
        self.num_let_go = 0

    def sleep(self, seconds: float) -> None:
        """A step of the engine."""
        self.num_begun += 1
        if not self._is_open:
            self._gate.acquire()
        self._now_s += seconds

    def clock(self) -> float:
        """Seconds of all steps so far."""
        return self._now_s

    def let_go_of_all(self) -> None:
        """Hold no step from now on."""
        self._is_open = True
        self._gate.release()

    async def step(self, engine: FakeEngine) -> None:
        """Let one step end, and wait until the next is under way; where the engine has no work, do nothing."""
        await until(lambda: self.num_begun > self.num_let_go or not engine.has_work)
        if self.num_begun > self.num_let_go:
            self.num_let_go += 1
            self._gate.release()
            await until(lambda: self.num_begun > self.num_let_go or not engine.has_work)


def metric_sum(page: str, name: str, **labels: str) -> float:
    """A sum of samples of a page in the Prometheus text format that carry these labels."""
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


async def until(condition: Callable[[], object], *, timeout_s: float = 20.0) -> None:
    """Wait for a condition that nothing announces; a test that waits in vain ends here."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def embedded_profile() -> ModelProfile:
    """The small profile."""
    return load_profile("embedded")
