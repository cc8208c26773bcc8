"""An engine without a network: deterministic pictures, chosen latency. For tests and for sizing a cluster."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from collections.abc import Callable

import numpy as np

from engine.errors import EngineBusyError, EngineStoppedError, InvalidRequestError, RequestCancelledError
from engine.profile import DrawnSize, ModelProfile
from engine.request import (
    EngineEvent,
    EngineStats,
    Failed,
    Finished,
    ImageRequest,
    Queued,
    RgbImage,
    StageSeconds,
    StepProgress,
)


@dataclasses.dataclass(slots=True)
class _Job:
    request: ImageRequest
    drawn: DrawnSize
    submitted_s: float
    num_done: int = 0
    started_s: float | None = None
    device_s: float = 0.0


class FakeEngine:
    """Takes ``step_s`` seconds a step for everyone together, at most ``max_running`` at a time.

    The picture is a colour gradient that depends on everything a real picture depends on (seed, prompts,
    reference, strength, steps, guidance, drawn size), so mixed-up requests show.
    """

    def __init__(
        self,
        profile: ModelProfile,
        *,
        step_s: float = 0.0,
        max_running: int = 8,
        max_waiting: int = 256,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._profile = profile
        self._step_s = step_s
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._sleep = sleep
        self._clock = clock
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._queued: list[Queued] = []  # told with the next step
        self._cancelled: set[str] = set()
        self._stats = EngineStats()
        self._is_closed = False

    @property
    def profile(self) -> ModelProfile:
        """The profile whose sizes and limits this engine obeys."""
        return self._profile

    @property
    def has_work(self) -> bool:
        """Whether any request is here."""
        with self._lock:
            return bool(self._jobs)

    def submit(self, request: ImageRequest) -> None:
        """See :meth:`engine.protocol.ImageEngine.submit`."""
        drawn = self._profile.check_request(request)
        with self._lock:
            if self._is_closed:
                raise EngineStoppedError("the engine is closed")
            if request.request_id in self._jobs:
                raise InvalidRequestError(f"request id {request.request_id} is already in the engine")
            if len(self._jobs) >= self._max_waiting + self._max_running:
                raise EngineBusyError(f"{len(self._jobs)} requests are already here")
            self._queued.append(self._prediction(request))
            self._jobs[request.request_id] = _Job(request=request, drawn=drawn, submitted_s=self._clock())
            self._count(num_submitted=1)

    def cancel(self, request_id: str) -> bool:
        """See :meth:`engine.protocol.ImageEngine.cancel`."""
        with self._lock:
            is_here = request_id in self._jobs
            if is_here:
                self._cancelled.add(request_id)
            return is_here

    def step(self) -> list[EngineEvent]:
        """Advance the oldest ``max_running`` requests by one step."""
        with self._lock:
            events: list[EngineEvent] = [*self._queued]
            self._queued.clear()
            if self._is_closed:
                for request_id in list(self._jobs):
                    events.append(self._fail(request_id, EngineStoppedError("the engine is closed")))
                return events
            for request_id in sorted(self._cancelled & self._jobs.keys()):
                events.append(self._fail(request_id, RequestCancelledError("the request was cancelled")))
            self._cancelled.clear()
            running = list(self._jobs.values())[: self._max_running]
        if not running:
            return events
        started_s = self._clock()
        self._sleep(self._step_s)
        with self._lock:
            for job in running:
                job.started_s = started_s if job.started_s is None else job.started_s
                job.num_done += 1
                job.device_s += self._step_s / len(running)
                events.append(self._advanced(job))
            self._count(num_steps=1, num_sample_steps=len(running), device_s=self._step_s)
        return events

    def warm_up(self) -> None:
        """Nothing to warm up."""

    def stats(self) -> EngineStats:
        """Counters and current load."""
        with self._lock:
            num_running = min(len(self._jobs), self._max_running)
            return dataclasses.replace(self._stats, num_running=num_running, num_waiting=len(self._jobs) - num_running)

    def check(self) -> None:
        """See :meth:`engine.protocol.ImageEngine.check`."""
        if self._is_closed:
            raise EngineStoppedError("the engine is closed")
        if not self.stats().is_conserved():
            raise EngineStoppedError(f"requests were lost or counted twice: {self.stats()}")

    def close(self) -> None:
        """See :meth:`engine.protocol.ImageEngine.close`."""
        with self._lock:
            self._is_closed = True

    def _prediction(self, request: ImageRequest) -> Queued:
        num_ahead = sum(job.request.num_steps - job.num_done for job in self._jobs.values())
        is_room = len(self._jobs) < self._max_running
        return Queued(
            request_id=request.request_id,
            predicted_wait_s=0.0 if is_room else self._step_s * num_ahead / self._max_running,
            predicted_device_s=self._step_s * request.num_steps,
        )

    def _advanced(self, job: _Job) -> EngineEvent:
        request = job.request
        if job.num_done < request.num_steps:
            return StepProgress(request_id=request.request_id, step=job.num_done, num_steps=request.num_steps)
        del self._jobs[request.request_id]
        self._count(num_finished=1)
        started_s = job.submitted_s if job.started_s is None else job.started_s
        return Finished(
            request_id=request.request_id,
            image=picture(request, job.drawn),
            drawn_width_px=job.drawn.width_px,
            drawn_height_px=job.drawn.height_px,
            stages=StageSeconds(queue_s=started_s - job.submitted_s, denoise_s=self._clock() - started_s),
            device_s=job.device_s,
        )

    def _fail(self, request_id: str, error: Exception) -> Failed:
        del self._jobs[request_id]
        is_cancelled = isinstance(error, RequestCancelledError)
        self._count(num_cancelled=int(is_cancelled), num_failed=int(not is_cancelled))
        return Failed(request_id=request_id, error=error)

    def _count(self, **increments: float) -> None:
        values = {name: getattr(self._stats, name) + by for name, by in increments.items()}
        self._stats = dataclasses.replace(self._stats, **values)


def picture(request: ImageRequest, drawn: DrawnSize) -> RgbImage:
    """The picture that :class:`FakeEngine` draws for a request: ``(height_px, width_px, 3)``."""
    reference_key = request.reference.key if request.reference else ""
    identity = (
        request.prompt,
        request.negative_prompt if request.cfg > 1.0 else "",
        reference_key if request.ip_scale > 0.0 else "",
        request.seed,
        request.ip_scale,
        request.cfg,
        request.guidance,
        request.num_steps,
        drawn.width_px,
        drawn.height_px,
    )
    digest = hashlib.sha256(repr(identity).encode()).digest()
    corners = np.frombuffer(digest[:12], dtype=np.uint8).reshape(2, 2, 3).astype(np.float32)
    y = np.linspace(0.0, 1.0, request.height_px, dtype=np.float32)[:, None, None]
    x = np.linspace(0.0, 1.0, request.width_px, dtype=np.float32)[None, :, None]
    top = corners[0, 0] * (1 - x) + corners[0, 1] * x
    bottom = corners[1, 0] * (1 - x) + corners[1, 1] * x
    image: RgbImage = (top * (1 - y) + bottom * y).astype(np.uint8)
    return image
