"""The GPU stage: one engine, stepped by one loop, drawing for many requests at once."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Final

from engine.fake import FakeEngine
from engine.loop import EngineLoop
from engine.profile import load_profile
from engine.protocol import ImageEngine
from serve_app import tracing
from serve_app.draw_progress import DrawProgress
from serve_app.encode import encode_picture
from serve_app.metrics.engine import DeviceReadings, MeteredEngine, follow_device
from serve_app.metrics.recorder import Recorder
from serve_app.metrics.replica import ReplicaStart
from serve_app.scaling.load import LoadReporter
from serve_app.settings import FakeEngineSettings, FluxEngineSettings
from serve_app.stages import FLUX_REPLICA, DrawEvent, DrawJob, DrawResult, OnDrawEvent
from serve_app.unquoted import unquoted

LEAVE_AFTER_S: Final = 0.2
"""Errors on their way out are small. Who is still waiting then loses its replica, which is the same to the ingress."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OpenEngine:
    """An engine that is loaded and warm.

    Attributes:
        device_name: the device it runs on.
        stages_s: seconds that its start took, by stage.
        read_device: how the device is, where that can be asked.
        max_step_s: a step that takes longer has hung.
    """

    engine: ImageEngine
    device_name: str
    max_step_s: float | None = None
    stages_s: Mapping[str, float] = dataclasses.field(default_factory=dict)
    read_device: Callable[[], DeviceReadings] | None = None


class FluxReplica:
    """Draws pictures, and writes them as files so that no raw pixels travel.

    Args:
        open_engine: loads the engine.
        open_recorder: where its numbers go.
        leave: ends this process soon. A replica whose engine broke or hung must not stay: it answers at once, with
            errors, so that of all replicas it would be given the most requests until Serve had it replaced.
    """

    def __init__(
        self,
        open_engine: Callable[[], OpenEngine],
        open_recorder: Callable[[], Recorder] = Recorder,
        leave: Callable[[], None] | None = None,
    ) -> None:
        self._recorder = open_recorder()
        start = ReplicaStart(self._recorder, FLUX_REPLICA)
        opened = open_engine()
        self._engine = MeteredEngine(opened.engine, self._recorder, opened.device_name)
        self._loop = EngineLoop(self._engine, max_step_s=opened.max_step_s, on_broken=leave)
        self._device_name = opened.device_name
        self._load = LoadReporter()
        if opened.read_device is not None:
            follow_device(self._recorder, opened.device_name, opened.read_device)
        start.done(opened.stages_s)

    def __del__(self) -> None:
        self._recorder.close()

    async def draw(self, job: DrawJob, on_event: OnDrawEvent | None = None) -> DrawResult:
        """See :meth:`serve_app.stages.Backend.draw`."""
        with tracing.span(FLUX_REPLICA, parent=job.trace) as span:
            result = await self._draw(job, on_event)
            span.add_parts(_parts(result))
            return result

    async def _draw(self, job: DrawJob, on_event: OnDrawEvent | None) -> DrawResult:
        self._loop.start()
        try:
            finished = await self._loop.draw(job.request, None if on_event is None else self._progress(on_event))
        except Exception as error:
            told = unquoted(error, job.request.prompt, job.request.negative_prompt)
            if told is error:
                raise
            raise told from None
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
        )

    async def draw_streamed(self, job: DrawJob) -> AsyncGenerator[DrawEvent | DrawResult]:
        """:meth:`draw` as a generator, whose events can travel between processes; the result comes last.

        Closing it, or cancelling the task that waits for its next event, frees the device at the next step.
        """
        told: asyncio.Queue[DrawEvent | None] = asyncio.Queue()  # at most one a step, so it needs no bound
        drawing = asyncio.ensure_future(self.draw(job, told.put_nowait))
        drawing.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (event := await told.get()) is not None:
                yield event
            yield drawing.result()
        finally:
            drawing.cancel()
            await asyncio.gather(drawing, return_exceptions=True)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Serve, for :mod:`serve_app.scaling.policy`."""
        stats = self._engine.stats()
        return self._load.report(
            owed_s=stats.queued_device_s,
            done_s=stats.device_s,
            num_requests=stats.num_waiting + stats.num_running,
            num_done=stats.num_finished,
        )

    async def check_health(self) -> None:
        """Raise where this replica can't serve; Ray then replaces it."""
        self._loop.start()
        self._loop.check()

    async def close(self) -> None:
        """Stop stepping and let go of the device; whoever waits gets EngineStoppedError."""
        await self._loop.close()

    def _progress(self, on_event: OnDrawEvent) -> DrawProgress:
        stats = self._engine.stats()
        return DrawProgress(on_event, position=stats.num_waiting + stats.num_running + 1)


def _parts(result: DrawResult) -> dict[str, float]:
    """Where a drawing's seconds went, in the order of its road."""
    stages = result.stages
    engine_s = {
        "queue": stages.queue_s,
        "encode": stages.encode_s,
        "denoise": stages.denoise_s,
        "decode": stages.decode_s,
    }
    return {**engine_s, "compress": result.compress_s}


def open_engine(*, profile_name: str, model_dir: str, settings: FluxEngineSettings | FakeEngineSettings) -> OpenEngine:
    """Load an engine and warm it up: minutes for a full-size model.

    Raises:
        ModelLoadError: no such profile, or the model folder is incomplete, corrupt or of another model.
    """
    profile = load_profile(profile_name)
    engine: ImageEngine
    stages_s: dict[str, float] = {}
    read_device: Callable[[], DeviceReadings] | None = None
    match settings:
        case FakeEngineSettings():
            device_name = settings.device_name
            engine = FakeEngine(profile, **settings.model_dump(exclude={"kind", "device_name", "max_step_s"}))
        case FluxEngineSettings():
            from engine.engine import load_engine  # torch, only where it is needed

            device_name = _device_name(settings)
            config = settings.engine_config(profile, str(Path(model_dir).expanduser()))
            engine = load_engine(config, on_stage=stages_s.__setitem__)
            if settings.device == "cuda":
                import torch

                from serve_app.metrics.cuda import CudaReader

                read_device = CudaReader(torch.cuda)
    started_s = time.perf_counter()
    engine.warm_up()
    stages_s["warm_up"] = time.perf_counter() - started_s
    return OpenEngine(
        engine=engine,
        device_name=device_name,
        max_step_s=settings.max_step_s,
        stages_s=stages_s,
        read_device=read_device,
    )


def leave_soon() -> None:
    """End this process once the answers that are ready have left it."""
    asyncio.get_running_loop().call_later(LEAVE_AFTER_S, os._exit, 1)


def _device_name(settings: FluxEngineSettings) -> str:
    if settings.device == "cpu":
        return "CPU"
    import torch

    return torch.cuda.get_device_name()
