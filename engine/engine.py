"""The engine: requests in, pictures out, one denoising step at a time.

``step`` is the whole story on one screen: take in what changed, choose who takes part, run one step, hand out what is
done. Who decides is :mod:`engine.scheduler`, who computes is :mod:`engine.runner`, who records is :mod:`engine.ledger`.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from engine.calibration import calibrated
from engine.config import EngineConfig
from engine.cost_meter import CostMeter
from engine.cost_model import CostModel, RequestWork
from engine.errors import EngineError, EngineStoppedError, NumericalError, OutOfDeviceMemoryError
from engine.ledger import Entry, Ledger, Stage
from engine.model.image_prompt import ImagePrompt
from engine.model.text import TextEmbedding
from engine.profile import ModelProfile
from engine.request import EngineEvent, EngineStats, Finished, ImageRequest, Queued, RgbImage, StageSeconds
from engine.runner import FluxRunner, Row, load_runner, resized
from engine.sampling.guidance import euler_step, guided
from engine.sampling.preview import LatentPreview
from engine.sampling.schedule import sigmas
from engine.scheduler import StepBudget, make_policy

logger = logging.getLogger(__name__)

UNCALIBRATED = CostModel.simple(token_s=1e-4)
"""A guess that orders requests by size until :meth:`FluxEngine.warm_up` has measured."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Conditions:
    """What one pass of a request is conditioned on."""

    text: TextEmbedding
    image_prompt: ImagePrompt


@dataclasses.dataclass(kw_only=True, slots=True)
class _Drawing:
    """A request's state on the device, from its first step on. Setting it aside keeps all of it: it is small."""

    tokens: Tensor
    position_ids: Tensor
    sigmas: list[float]
    positive: _Conditions
    negative: _Conditions | None


_Job = Entry[_Drawing]


class FluxEngine:
    """One model on one device. See :class:`engine.protocol.ImageEngine` for the contract of every method."""

    def __init__(
        self,
        config: EngineConfig,
        runner: FluxRunner,
        *,
        meter: CostMeter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._runner = runner
        self._clock = clock
        self._meter = meter or CostMeter(UNCALIBRATED)
        self._preview = LatentPreview.of(config.profile.autoencoder)
        self._ledger: Ledger[_Drawing] = Ledger(
            policy=make_policy(config.policy, lambda row_tokens: self._meter.model.step_seconds(row_tokens)),
            budget=StepBudget(max_samples=config.max_batch_samples, max_tokens=config.max_batch_tokens),
            meter=self._meter,
            max_waiting=config.max_waiting,
            max_queued_device_s=config.max_queued_device_s,
            clock=clock,
        )
        self._stepping = threading.Lock()  # held through a step, so that close() never pulls the device from under it

    @property
    def profile(self) -> ModelProfile:
        """The model this engine serves."""
        return self._config.profile

    @property
    def cost_model(self) -> CostModel:
        """What work costs here, as known now."""
        return self._meter.model

    @property
    def has_work(self) -> bool:
        """Whether any request is here."""
        return self._ledger.has_work

    def submit(self, request: ImageRequest) -> Queued:
        """Take a request in. Checks it against the profile before anything is computed."""
        size = self.profile.check_request(request)
        prompts = {request.prompt} if request.num_passes == 1 else {request.prompt, request.negative_prompt}
        work = RequestWork(
            num_rows=request.num_passes,
            num_tokens_per_row=self._runner.num_txt + size.num_tokens,
            num_steps=request.num_steps,
            num_pixels=size.num_pixels,
            num_prompts=sum(prompt not in self._runner.text_cache for prompt in prompts),
            num_references=self._runner.num_references_to_encode(request.reference),
        )
        return self._ledger.submit(request, size, work)

    def cancel(self, request_id: str) -> bool:
        """Drop a request before the next step."""
        return self._ledger.cancel(request_id)

    def step(self) -> list[EngineEvent]:
        """One denoising step for those who are chosen."""
        with self._stepping:
            dropped, jobs = self._ledger.begin_step()
            events: list[EngineEvent] = [*dropped]
            if not jobs:
                return events
            try:
                ready = [job for job in jobs if self._guarded(events, job, self._prepare)]
                for job in self._denoise(events, ready):
                    if job.is_drawn:
                        self._guarded(events, job, lambda job: events.append(self._finish(job)))
            except Exception as error:
                logger.exception("the engine broke in a step")
                self._ledger.stop(EngineStoppedError("the engine broke; see the replica's log"))
                raise EngineStoppedError("the engine broke; see the replica's log") from error
            return events

    def warm_up(self) -> None:
        """Time every stage at a few sizes: kernels are chosen, memory is taken, and costs are known afterwards."""
        with self._stepping:
            self._meter.calibrate(calibrated(self._runner, self.profile, self._config, clock=self._clock))
            if self._preview is None:
                self._preview = LatentPreview.fitted(self._runner.decode_latents, self.profile.autoencoder.z_channels)

    def stats(self) -> EngineStats:
        """Counters and current load."""
        return dataclasses.replace(
            self._ledger.stats(),
            text_cache=self._runner.text_cache.stats(),
            image_cache=self._runner.image_cache.stats(),
        )

    def check(self) -> None:
        """Raise EngineStoppedError where the engine can't serve, or lost count of a request."""
        self._ledger.check()

    def close(self) -> None:
        """Take nothing further; what is here ends at the next step."""
        self._ledger.stop(EngineStoppedError("the engine is closed"))

    # -- step, in the order of events ------------------------------------------------------------------------------

    def _prepare(self, job: _Job) -> None:
        """Encode what the request is conditioned on, once."""
        if job.drawing is not None:
            return
        runner, request, size = self._runner, job.request, job.size
        num_encoded = runner.num_prompts_encoded
        with self._charged(job, "text") as text:
            positive = runner.encode_prompt(request.prompt)
            negative = runner.encode_prompt(request.negative_prompt) if request.num_passes == 2 else None
        if (num_encoded := runner.num_prompts_encoded - num_encoded) > 0:
            self._meter.observe_text(num_encoded, text.seconds)
        num_references = runner.num_references_to_encode(request.reference)
        with self._charged(job, "vision") as vision:
            image_prompt, black_prompt = self._image_prompts(request)
            tokens, position_ids = runner.initial_tokens(request.seed, size), runner.position_ids(size)
        if num_references:
            self._meter.observe_vision(num_references, vision.seconds)
        job.drawing = _Drawing(
            tokens=tokens,
            position_ids=position_ids,
            sigmas=sigmas(request.scheduler, num_steps=request.num_steps, num_tokens=size.num_tokens),
            positive=_Conditions(text=positive, image_prompt=image_prompt),
            negative=None if negative is None else _Conditions(text=negative, image_prompt=black_prompt),
        )
        job.encoded_s, job.text_s, job.vision_s = self._clock(), text.seconds, vision.seconds

    def _image_prompts(self, request: ImageRequest) -> tuple[ImagePrompt, ImagePrompt]:
        """Those of the positive and of the negative pass."""
        black = self._runner.black_prompt
        if request.reference is None:
            return black.scaled(0.0), black.scaled(0.0)
        # The negative pass sees a black picture at the same strength (XLabs-AI/x-flux-comfyui nodes.py).
        prompt = self._runner.encode_reference(request.reference)
        return prompt.scaled(request.ip_scale), black.scaled(request.ip_scale)

    def _denoise(self, events: list[EngineEvent], jobs: list[_Job]) -> list[_Job]:
        """One Euler step for all, and who took it; without memory for all at once, one after another."""
        if not jobs:
            return []
        try:
            events += self._denoise_together(jobs)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return [
                job
                for job in jobs
                if self._guarded(events, job, lambda job: events.extend(self._denoise_together([job])))
            ]
        return jobs

    def _denoise_together(self, jobs: list[_Job]) -> Sequence[EngineEvent]:
        started_s = self._clock()
        rows = [_rows(job) for job in jobs]
        velocities = iter(self._runner.velocity([row for pair in rows for row in pair]))
        stepped: list[Tensor] = []
        previews: dict[str, RgbImage] = {}
        for job in jobs:
            drawing = _of(job)
            positive = next(velocities)
            negative = None if drawing.negative is None else next(velocities)
            sigma, sigma_next = drawing.sigmas[job.num_steps_done : job.num_steps_done + 2]
            velocity = guided(positive, negative, job.request.cfg)
            stepped.append(euler_step(drawing.tokens, velocity, sigma=sigma, sigma_next=sigma_next))
            if self._preview is not None and job.is_preview_due:
                clean = euler_step(drawing.tokens, velocity, sigma=sigma, sigma_next=0.0)
                previews[job.request.request_id] = self._preview.image(clean, job.size)
        self._runner.synchronize()
        # Only now, when nothing can fail any more: a step is taken by all of them or by none.
        for job, tokens in zip(jobs, stepped, strict=True):
            _of(job).tokens = tokens
        return self._ledger.step_done(jobs, self._clock() - started_s, previews)

    def _finish(self, job: _Job) -> Finished:
        """Decode a drawing whose last step is done."""
        drawing, request, size = _of(job), job.request, job.size
        if not torch.isfinite(drawing.tokens).all():
            raise NumericalError("the network produced infinite values for this request")
        denoised_s = self._clock()
        with self._charged(job, "decode") as decode:
            image = self._runner.decode(drawing.tokens, size)
        self._meter.observe_decode(size.num_pixels, decode.seconds)
        image = resized(image, width_px=request.width_px, height_px=request.height_px)
        started_s = job.arrival_s if job.started_s is None else job.started_s
        self._ledger.finished(job)
        return Finished(
            request_id=request.request_id,
            image=image,
            drawn_width_px=size.width_px,
            drawn_height_px=size.height_px,
            stages=StageSeconds(
                queue_s=started_s - job.arrival_s,
                encode_s=job.encoded_s - started_s,
                text_s=job.text_s,
                vision_s=job.vision_s,
                denoise_s=denoised_s - job.encoded_s,
                decode_s=self._clock() - denoised_s,
            ),
            device_s=job.device_s,
        )

    # -- helpers ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _charged(self, job: _Job, stage: Stage) -> Iterator[_Stopwatch]:
        """Charge a request for what the device does for it alone."""
        watch = _Stopwatch()
        started_s = self._clock()
        yield watch
        self._runner.synchronize()
        watch.seconds = self._clock() - started_s
        self._ledger.charge(job, stage, watch.seconds)

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
        events.append(self._ledger.failed(job, error))
        return False


@dataclasses.dataclass(slots=True)
class _Stopwatch:
    seconds: float = 0.0


def _of(job: _Job) -> _Drawing:
    assert job.drawing is not None, "the request has not been prepared"
    return job.drawing


def _rows(job: _Job) -> list[Row]:
    """The positive row and, with true guidance, the negative one."""
    drawing = _of(job)
    passes = [drawing.positive] if drawing.negative is None else [drawing.positive, drawing.negative]
    return [
        Row(
            tokens=drawing.tokens,
            position_ids=drawing.position_ids,
            text=conditions.text,
            image_prompt=conditions.image_prompt,
            sigma=drawing.sigmas[job.num_steps_done],
            guidance=job.request.guidance,
        )
        for conditions in passes
    ]


def load_engine(config: EngineConfig, on_stage: Callable[[str, float], None] | None = None) -> FluxEngine:
    """An engine over :func:`engine.runner.load_runner`; see :meth:`FluxEngine.warm_up` for the rest of a cold start."""
    return FluxEngine(config, load_runner(config, on_stage))
