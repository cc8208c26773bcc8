"""What goes into the engine and what comes out of it. Plain data: numpy at most, no torch."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from engine.cache import CacheStats
from engine.errors import InvalidRequestError

RgbImage = npt.NDArray[np.uint8]
"""An sRGB picture, ``(H, W, 3)``, 0-255."""

Embedding = npt.NDArray[np.float32]
"""A projected CLIP image embedding, ``(embedding_dim,)``: 768 for ViT-L/14."""

SchedulerName = Literal["simple", "flux"]

MAX_SEED = 2**63 - 1
"""Seeds are signed 64-bit integers, as ``torch.Generator.manual_seed`` takes them."""


PRIORITIES = (0, 1, 2)
"""Low, normal, high."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """The picture whose person is to be kept, as small as the engine needs it.

    Exactly one of ``crop`` and ``embedding`` is set: the crop where the engine encodes it itself
    (``face_provider: GPU``), the embedding where the face stage already did (``face_provider: CPU``).

    Attributes:
        crop: ``(224, 224, 3)`` sRGB, already cropped and resized for CLIP.
        embedding: ``(embedding_dim,)`` float32, CLIP's projected image embedding.
        key: content hash of what was encoded; equal keys mean equal embeddings. Cache key, never shown.
    """

    crop: RgbImage | None = None
    embedding: Embedding | None = None
    key: str

    def __post_init__(self) -> None:
        if (self.crop is None) == (self.embedding is None):
            raise InvalidRequestError("a reference holds either a crop or an embedding, not both and not neither")
        if self.crop is not None and (self.crop.ndim != 3 or self.crop.shape[2] != 3 or self.crop.dtype != np.uint8):
            raise InvalidRequestError(f"a reference crop is (H, W, 3) uint8, not {self.crop.shape} {self.crop.dtype}")
        if self.embedding is not None and (self.embedding.ndim != 1 or not np.isfinite(self.embedding).all()):
            raise InvalidRequestError("a reference embedding is one finite vector")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImageRequest:
    """One picture to draw, with every choice made except those a profile makes.

    Attributes:
        request_id: unique among the requests in the engine.
        prompt: what to draw.
        reference: whom to draw. ``None`` draws without the adapter.
        negative_prompt: what to steer away from; used where ``cfg`` > 1.
        width_px, height_px: size of the picture that is returned; multiples of 16.
        num_steps: Euler steps.
        cfg: true classifier-free guidance, ``neg + cfg · (pos − neg)``; 1.0 is off and costs one pass a step.
        guidance: FLUX.1-dev's distilled guidance (an embedding, not a second pass).
        seed: 0 … 2**63 − 1. Choosing a random one is the caller's business: the engine is deterministic.
        ip_scale: weight of the adapter's image attention, 0 … 1.
        scheduler: ``simple`` is ComfyUI's, ``flux`` moves the shift with the token count.
        max_wait_s: most seconds from submission to the finished picture; None waits as long as it takes. Refused at
            once where the work that is here already makes that impossible.
        priority: 0 low, 1 normal, 2 high. Never starves those below (:mod:`engine.scheduler`).
        preview_every: a small preview with every so many steps; 0 is none.
    """

    request_id: str
    prompt: str
    reference: Reference | None = None
    negative_prompt: str = ""
    width_px: int = 1024
    height_px: int = 1024
    num_steps: int = 20
    cfg: float = 1.0
    guidance: float = 3.5
    seed: int = 42
    ip_scale: float = 0.8
    scheduler: SchedulerName = "simple"
    max_wait_s: float | None = None
    priority: int = 1
    preview_every: int = 0

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise InvalidRequestError("prompt must not be blank")
        for name, value in (("width", self.width_px), ("height", self.height_px)):
            if value <= 0 or value % 16:
                raise InvalidRequestError(f"{name} must be a positive multiple of 16, got {value}")
        if self.num_steps < 1:
            raise InvalidRequestError(f"steps must be at least 1, got {self.num_steps}")
        if not (math.isfinite(self.cfg) and self.cfg >= 1.0):
            raise InvalidRequestError(f"cfg must be a finite number of at least 1.0, got {self.cfg}")
        if not (math.isfinite(self.guidance) and self.guidance >= 0.0):
            raise InvalidRequestError(f"guidance must be a finite number of at least 0.0, got {self.guidance}")
        if not 0.0 <= self.ip_scale <= 1.0:
            raise InvalidRequestError(f"ipadapter_strength must be between 0.0 and 1.0, got {self.ip_scale}")
        if not 0 <= self.seed <= MAX_SEED:
            raise InvalidRequestError(f"seed must be between 0 and {MAX_SEED}, got {self.seed}")
        if self.max_wait_s is not None and not (math.isfinite(self.max_wait_s) and self.max_wait_s > 0.0):
            raise InvalidRequestError(f"max_wait_s must be a finite number above 0, got {self.max_wait_s}")
        if self.priority not in PRIORITIES:
            raise InvalidRequestError(f"priority must be 0, 1 or 2, got {self.priority}")
        if self.preview_every < 0:
            raise InvalidRequestError(f"preview_every must not be negative, got {self.preview_every}")

    @property
    def num_passes(self) -> int:
        """Forward passes a step: two where true guidance is on, else one."""
        return 2 if self.cfg > 1.0 else 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StageSeconds:
    """Wall-clock seconds a request spent in each stage of the engine; shared steps count in full.

    ``text_s`` and ``vision_s`` are what ``encode_s`` went into: prompts, and the reference.
    """

    queue_s: float = 0.0
    encode_s: float = 0.0
    text_s: float = 0.0
    vision_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Queued:
    """The request was taken in. First event of every request; ``submit`` returns it.

    Attributes:
        predicted_wait_s: until its first step, as the cost model sees it.
        predicted_device_s: seconds of the device its own work will take.
    """

    request_id: str
    predicted_wait_s: float
    predicted_device_s: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepProgress:
    """``step`` of ``num_steps`` is done.

    Attributes:
        preview: a cheap estimate of the finished picture, (H/8, W/8, 3), where one was asked for with this step.
    """

    request_id: str
    step: int
    num_steps: int
    preview: RgbImage | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A request ended with a picture.

    Attributes:
        image: the picture at the requested size.
        drawn_width_px, drawn_height_px: the size the network drew at; smaller than the picture where the
            profile draws at its native size and scales up.
        stages: wall-clock seconds by stage.
        device_s: seconds of the device this request is charged for: its share (by tokens) of every step it took
            part in, plus its own encoding and decoding. The shares of a step add up to the step.
    """

    request_id: str
    image: RgbImage
    drawn_width_px: int
    drawn_height_px: int
    stages: StageSeconds
    device_s: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """A request ended without a picture; the engine goes on. Cancelled requests end so as well."""

    request_id: str
    error: Exception


EngineEvent = Queued | StepProgress | Finished | Failed


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """Counters since the engine started, and what it holds now. The law: see :meth:`is_conserved`.

    Attributes:
        num_submitted: requests taken in; each ends as exactly one of finished, failed, cancelled, expired.
        num_expired: ended because their ``max_wait_s`` had passed.
        num_refused: not taken in, because the queue was too long. Not among those submitted.
        num_waiting, num_running: here now, before and after their first step.
        num_steps: forward passes of the whole batch.
        num_sample_steps: steps summed over the requests in them.
        num_wasted_steps: those of them that requests without a picture took.
        num_step_tokens: tokens over all steps; divided by ``num_steps × max_step_tokens``, how full steps were.
        max_step_tokens: the budget of one step.
        device_s: seconds the device was busy; the sum of the four stages below.
        queued_device_s: the work that is here, waiting and running, in predicted seconds of the device.
        cost_model_error: median of |predicted ÷ measured − 1| over the last steps; None before the first.
        text_cache: prompt → text embeddings, negative prompts too.
        image_cache: reference → the adapter's keys and values.
    """

    num_submitted: int = 0
    num_finished: int = 0
    num_failed: int = 0
    num_cancelled: int = 0
    num_expired: int = 0
    num_refused: int = 0
    num_waiting: int = 0
    num_running: int = 0
    num_steps: int = 0
    num_sample_steps: int = 0
    num_wasted_steps: int = 0
    num_step_tokens: int = 0
    max_step_tokens: int = 0
    device_s: float = 0.0
    text_s: float = 0.0
    vision_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    queued_device_s: float = 0.0
    cost_model_error: float | None = None
    text_cache: CacheStats = dataclasses.field(default_factory=CacheStats)
    image_cache: CacheStats = dataclasses.field(default_factory=CacheStats)

    def is_conserved(self) -> bool:
        """Every request that came in is counted exactly once."""
        ended = self.num_finished + self.num_failed + self.num_cancelled + self.num_expired
        return self.num_submitted == ended + self.num_waiting + self.num_running
