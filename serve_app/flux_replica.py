"""The GPU stage: one engine, stepped by one loop, drawing for many requests at once."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from engine.fake import FakeEngine
from engine.loop import EngineLoop
from engine.profile import load_profile
from engine.protocol import ImageEngine
from engine.request import EngineStats
from serve_app.encode import encode_picture
from serve_app.settings import FakeEngineSettings, FluxEngineSettings
from serve_app.stages import DrawJob, DrawResult, EngineWork


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OpenEngine:
    """An engine that is loaded and warm, and the name of the device it runs on."""

    engine: ImageEngine
    device_name: str


class FluxReplica:
    """Draws pictures, and writes them as files so that no raw pixels travel."""

    def __init__(self, open_engine: Callable[[], OpenEngine]) -> None:
        opened = open_engine()
        self._engine = opened.engine
        self._loop = EngineLoop(opened.engine)
        self._device_name = opened.device_name
        self._told = EngineStats()

    async def draw(self, job: DrawJob) -> DrawResult:
        """See :meth:`serve_app.stages.Backend.draw`."""
        self._loop.start()
        finished = await self._loop.draw(job.request)
        started_s = time.perf_counter()
        data = await asyncio.to_thread(encode_picture, finished.image, job.encoding)
        return DrawResult(
            data=data,
            drawn_width_px=finished.drawn_width_px,
            drawn_height_px=finished.drawn_height_px,
            stages=finished.stages,
            compress_s=time.perf_counter() - started_s,
            device_s=finished.device_s,
            device_name=self._device_name,
            work=self._untold_work(),
        )

    async def check_health(self) -> None:
        """Raise where this replica can't serve; Ray then replaces it."""
        self._loop.start()
        self._loop.check()

    async def close(self) -> None:
        """Stop stepping and let go of the device; whoever waits gets EngineStoppedError."""
        await self._loop.close()

    def _untold_work(self) -> EngineWork:
        now, told = self._engine.stats(), self._told
        self._told = now
        return EngineWork(
            num_steps=now.num_steps - told.num_steps,
            num_sample_steps=now.num_sample_steps - told.num_sample_steps,
            device_s=now.device_s - told.device_s,
        )


def open_engine(*, profile_name: str, model_dir: str, settings: FluxEngineSettings | FakeEngineSettings) -> OpenEngine:
    """Load an engine and warm it up: minutes for a full-size model.

    Raises:
        ModelLoadError: no such profile, or the model folder is incomplete, corrupt or of another model.
    """
    profile = load_profile(profile_name)
    engine: ImageEngine
    match settings:
        case FakeEngineSettings():
            device_name = settings.device_name
            engine = FakeEngine(
                profile, step_s=settings.step_s, max_running=settings.max_running, max_waiting=settings.max_waiting
            )
        case FluxEngineSettings():
            from engine.engine import load_engine  # torch, only where it is needed

            device_name = _device_name(settings)
            engine = load_engine(settings.engine_config(profile, str(Path(model_dir).expanduser())))
    engine.warm_up()
    return OpenEngine(engine=engine, device_name=device_name)


def _device_name(settings: FluxEngineSettings) -> str:
    if settings.device == "cpu":
        return "CPU"
    import torch

    return torch.cuda.get_device_name()
