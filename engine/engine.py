"""The engine: requests in, pictures out, one denoising step at a time.

``step`` is the whole story on one screen: take in what changed, choose who takes part, run one step, hand out what is
done. Who decides is :mod:`engine.scheduler`, who computes is :mod:`engine.runner`, who records is this file.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.errors import (
    EngineBusyError,
    EngineError,
    EngineStoppedError,
    InvalidRequestError,
    NumericalError,
    OutOfDeviceMemoryError,
    RequestCancelledError,
)
from engine.memory import MEMORY_PROFILES, check_fits
from engine.model.image_prompt import ImagePrompt
from engine.model.text import TextEmbedding
from engine.profile import DrawnSize, ModelProfile
from engine.request import EngineEvent, EngineStats, Failed, Finished, ImageRequest, StageSeconds, StepProgress
from engine.runner import FluxRunner, Row, resized
from engine.sampling.guidance import euler_step, guided
from engine.sampling.schedule import sigmas
from engine.scheduler import Candidate, SchedulingPolicy, StepBudget, first_come
from engine.weights.load import load_networks
from engine.weights.plan import memory_plans

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Conditions:
    """What one pass of a request is conditioned on."""

    text: TextEmbedding
    image_prompt: ImagePrompt


@dataclasses.dataclass(kw_only=True, slots=True)
class _Drawing:
    """A request's state on the device, from its first step on."""

    tokens: Tensor
    position_ids: Tensor
    sigmas: list[float]
    positive: _Conditions
    negative: _Conditions | None
    num_done: int = 0

    @property
    def is_done(self) -> bool:
        return self.num_done == len(self.sigmas) - 1


@dataclasses.dataclass(kw_only=True, slots=True)
class _Job:
    """A request in the engine."""

    request: ImageRequest
    size: DrawnSize
    candidate: Candidate
    submitted_s: float
    started_s: float = 0.0
    encoded_s: float = 0.0
    device_s: float = 0.0
    drawing: _Drawing | None = None


class FluxEngine:
    """One model on one device. See :class:`engine.protocol.ImageEngine` for the contract of every method."""

    def __init__(
        self,
        config: EngineConfig,
        runner: FluxRunner,
        *,
        policy: SchedulingPolicy = first_come,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._runner = runner
        self._policy = policy
        self._clock = clock
        self._budget = StepBudget(max_samples=config.max_batch_samples, max_tokens=config.max_batch_tokens)
        self._state = threading.Lock()  # guards the four fields below; held for moments
        self._jobs: dict[str, _Job] = {}  # in order of arrival
        self._cancelled: set[str] = set()
        self._stats = EngineStats()
        self._stopped: EngineStoppedError | None = None
        self._stepping = threading.Lock()  # held through a step, so that close() never pulls the device from under it

    @property
    def profile(self) -> ModelProfile:
        """The model this engine serves."""
        return self._config.profile

    @property
    def has_work(self) -> bool:
        """Whether any request is here."""
        with self._state:
            return bool(self._jobs)

    def submit(self, request: ImageRequest) -> None:
        """Take a request in. Checks it against the profile before anything is computed."""
        size = self.profile.check_request(request)
        candidate = Candidate(
            request_id=request.request_id,
            num_rows=request.num_passes,
            num_tokens_per_row=self._runner.num_txt + size.num_tokens,
        )
        with self._state:
            if self._stopped is not None:
                raise self._stopped
            if request.request_id in self._jobs:
                raise InvalidRequestError(f"request id {request.request_id} is already in the engine")
            if self._num_waiting() >= self._config.max_waiting:
                raise EngineBusyError(f"{self._num_waiting()} requests wait already")
            self._jobs[request.request_id] = _Job(
                request=request, size=size, candidate=candidate, submitted_s=self._clock()
            )
            self._count(num_submitted=1)

    def cancel(self, request_id: str) -> bool:
        """Drop a request before the next step."""
        with self._state:
            is_here = request_id in self._jobs
            if is_here:
                self._cancelled.add(request_id)
            return is_here

    def step(self) -> list[EngineEvent]:
        """One denoising step for those who are chosen."""
        with self._stepping:
            events: list[EngineEvent] = [*self._drop_cancelled()]
            jobs = self._choose()
            if not jobs:
                return events
            try:
                ready = [job for job in jobs if self._guarded(events, job, self._prepare)]
                events += self._denoise(ready)
                for job in ready:
                    if job.drawing is not None and job.drawing.is_done and job.request.request_id in self._jobs:
                        self._guarded(events, job, lambda job: events.append(self._finish(job)))
            except Exception as error:
                logger.exception("the engine broke in a step")
                self._stop(EngineStoppedError("the engine broke; see the replica's log"))
                raise EngineStoppedError("the engine broke; see the replica's log") from error
            return events

    def warm_up(self) -> None:
        """Draw one step of a picture at native size, so that kernels are chosen and memory is taken."""
        size = self.profile.size
        request = ImageRequest(
            request_id="warm-up", prompt="warm up", width_px=size.native_width_px, height_px=size.native_height_px
        )
        drawn = size.drawn_size(request.width_px, request.height_px)
        drawing = self._drawing(request, drawn)
        with self._stepping:
            self._runner.velocity(_rows(drawing, request.guidance))
            self._runner.decode(drawing.tokens, drawn)
            self._runner.synchronize()

    def stats(self) -> EngineStats:
        """Counters and current load."""
        with self._state:
            num_waiting = self._num_waiting()
            return dataclasses.replace(self._stats, num_waiting=num_waiting, num_running=len(self._jobs) - num_waiting)

    def check(self) -> None:
        """Raise EngineStoppedError where the engine can't serve, or lost count of a request."""
        if self._stopped is not None:
            raise self._stopped
        stats = self.stats()
        if not stats.is_conserved():
            raise EngineStoppedError(f"requests were lost or counted twice: {stats}")

    def close(self) -> None:
        """Take nothing further; what is here ends at the next step."""
        self._stop(EngineStoppedError("the engine is closed"))

    # -- step, in the order of events ------------------------------------------------------------------------------

    def _drop_cancelled(self) -> list[Failed]:
        with self._state:
            if self._stopped is not None:
                return [self._failed(job, self._stopped) for job in list(self._jobs.values())]
            dropped = [job for request_id, job in self._jobs.items() if request_id in self._cancelled]
            self._cancelled.clear()
            return [self._failed(job, RequestCancelledError("the request was cancelled")) for job in dropped]

    def _choose(self) -> list[_Job]:
        with self._state:
            chosen = self._policy([job.candidate for job in self._jobs.values()], self._budget)
            return [self._jobs[candidate.request_id] for candidate in chosen]

    def _prepare(self, job: _Job) -> None:
        """Encode what the request is conditioned on, once."""
        if job.drawing is not None:
            return
        job.started_s = self._clock()
        job.drawing = self._drawing(job.request, job.size)
        self._runner.synchronize()
        job.encoded_s = self._clock()
        self._charge(job, job.encoded_s - job.started_s)

    def _denoise(self, jobs: list[_Job]) -> list[EngineEvent]:
        """One Euler step for all; where the device has no memory for all at once, one after another."""
        try:
            return self._denoise_together(jobs)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        events: list[EngineEvent] = []
        for job in jobs:
            self._guarded(events, job, lambda job: events.extend(self._denoise_together([job])))
        return events

    def _denoise_together(self, jobs: list[_Job]) -> list[EngineEvent]:
        if not jobs:
            return []
        started_s = self._clock()
        rows = [_rows(_of(job), job.request.guidance) for job in jobs]
        velocities = iter(self._runner.velocity([row for pair in rows for row in pair]))
        stepped: list[Tensor] = []
        for job in jobs:
            drawing = _of(job)
            positive = next(velocities)
            negative = None if drawing.negative is None else next(velocities)
            sigma, sigma_next = drawing.sigmas[drawing.num_done : drawing.num_done + 2]
            velocity = guided(positive, negative, job.request.cfg)
            stepped.append(euler_step(drawing.tokens, velocity, sigma=sigma, sigma_next=sigma_next))
        self._runner.synchronize()
        # Only now, when nothing can fail any more: a step is taken by all of them or by none.
        for job, tokens in zip(jobs, stepped, strict=True):
            _of(job).tokens = tokens
        return self._record_step(jobs, step_s=self._clock() - started_s)

    def _record_step(self, jobs: list[_Job], *, step_s: float) -> list[EngineEvent]:
        """Count the step and charge everyone by tokens; the shares add up to the step."""
        num_tokens = sum(job.candidate.num_tokens for job in jobs)
        for job in jobs:
            _of(job).num_done += 1
            self._charge(job, step_s * job.candidate.num_tokens / num_tokens)
        with self._state:
            self._count(num_steps=1, num_sample_steps=len(jobs))
        return [
            StepProgress(request_id=job.request.request_id, step=_of(job).num_done, num_steps=job.request.num_steps)
            for job in jobs
        ]

    def _finish(self, job: _Job) -> Finished:
        """Decode a drawing whose last step is done."""
        drawing, request = _of(job), job.request
        denoised_s = self._clock()
        if not torch.isfinite(drawing.tokens).all():
            raise NumericalError("the network produced infinite values for this request")
        image = self._runner.decode(drawing.tokens, job.size)
        self._charge(job, self._clock() - denoised_s)
        image = resized(image, width_px=request.width_px, height_px=request.height_px)
        finished = Finished(
            request_id=request.request_id,
            image=image,
            drawn_width_px=job.size.width_px,
            drawn_height_px=job.size.height_px,
            stages=StageSeconds(
                queue_s=job.started_s - job.submitted_s,
                encode_s=job.encoded_s - job.started_s,
                denoise_s=denoised_s - job.encoded_s,
                decode_s=self._clock() - denoised_s,
            ),
            device_s=job.device_s,
        )
        with self._state:
            del self._jobs[request.request_id]
            self._count(num_finished=1)
        return finished

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _drawing(self, request: ImageRequest, size: DrawnSize) -> _Drawing:
        runner = self._runner
        if request.reference is None:
            image_prompt = runner.black_prompt.scaled(0.0)
        else:
            image_prompt = runner.encode_reference(request.reference).scaled(request.ip_scale)
        negative = None
        if request.num_passes == 2:
            # The negative pass sees a black picture at the same strength (XLabs-AI/x-flux-comfyui nodes.py).
            black = runner.black_prompt.scaled(request.ip_scale if request.reference else 0.0)
            negative = _Conditions(text=runner.encode_prompt(request.negative_prompt), image_prompt=black)
        return _Drawing(
            tokens=runner.initial_tokens(request.seed, size),
            position_ids=runner.position_ids(size),
            sigmas=sigmas(request.scheduler, num_steps=request.num_steps, num_tokens=size.num_tokens),
            positive=_Conditions(text=runner.encode_prompt(request.prompt), image_prompt=image_prompt),
            negative=negative,
        )

    def _guarded(self, events: list[EngineEvent], job: _Job, work: Callable[[_Job], None]) -> bool:
        """Run work that concerns one request; what goes wrong for it alone ends it alone."""
        try:
            work(job)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            error: EngineError = OutOfDeviceMemoryError(
                "the device ran out of memory for this request; ask for a smaller picture"
            )
        except EngineError as own:
            error = own
        else:
            return True
        with self._state:
            events.append(self._failed(job, error))
        return False

    def _failed(self, job: _Job, error: EngineError) -> Failed:
        """End a request without a picture. The caller holds the lock."""
        del self._jobs[job.request.request_id]
        is_cancelled = isinstance(error, RequestCancelledError)
        self._count(num_cancelled=int(is_cancelled), num_failed=int(not is_cancelled))
        return Failed(request_id=job.request.request_id, error=error)

    def _charge(self, job: _Job, seconds: float) -> None:
        job.device_s += seconds
        with self._state:
            self._count(device_s=seconds)

    def _count(self, **increments: float) -> None:
        """Add to the counters. The caller holds the lock."""
        values = {name: getattr(self._stats, name) + by for name, by in increments.items()}
        self._stats = dataclasses.replace(self._stats, **values)

    def _num_waiting(self) -> int:
        return sum(job.drawing is None for job in self._jobs.values())

    def _stop(self, error: EngineStoppedError) -> None:
        with self._state:
            self._stopped = self._stopped or error


def _of(job: _Job) -> _Drawing:
    assert job.drawing is not None, "the request has not been prepared"
    return job.drawing


def _rows(drawing: _Drawing, guidance: float) -> list[Row]:
    """The positive row and, with true guidance, the negative one."""
    passes = [drawing.positive] if drawing.negative is None else [drawing.positive, drawing.negative]
    return [
        Row(
            tokens=drawing.tokens,
            position_ids=drawing.position_ids,
            text=conditions.text,
            image_prompt=conditions.image_prompt,
            sigma=drawing.sigmas[drawing.num_done],
            guidance=guidance,
        )
        for conditions in passes
    ]


def load_engine(config: EngineConfig, on_stage: Callable[[str, float], None] | None = None) -> FluxEngine:
    """Read a profile's files and be ready to draw; see :meth:`FluxEngine.warm_up` for the rest of a cold start.

    Raises:
        ModelLoadError: the model folder is incomplete, corrupt or of another model, or does not fit the device.
    """
    if config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads)
    if config.device == "cuda":
        plans = memory_plans(config)
        check_fits(plans.pop(config.memory), torch.cuda.mem_get_info()[0], others=plans)
    networks = load_networks(
        config.profile,
        config.model_dir,
        device=config.device,
        dtype=config.dtype,
        memory=MEMORY_PROFILES[config.memory],
        on_stage=on_stage,
    )
    return FluxEngine(config, FluxRunner(networks, config))
