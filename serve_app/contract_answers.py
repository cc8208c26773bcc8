"""The contract's answers as types: the picture as JSON, errors, and the answers of the routes beside it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_app.stages import FacePolicy, FaceProvider


class FaceBoxBody(BaseModel):
    """The chosen face in the reference picture, in pixels after its EXIF orientation was applied."""

    left_px: int
    top_px: int
    width_px: int
    height_px: int
    confidence: float = Field(description="The detector's, 0 to 1.")


class FaceBody(BaseModel):
    """What the face stage did with the reference picture."""

    policy: FacePolicy
    provider: FaceProvider = Field(description="Where the picture's embedding was computed.")
    box: FaceBoxBody | None = Field(description="Null where the whole picture was taken.")
    reference_width_px: int
    reference_height_px: int
    is_cached: bool = Field(description="Whether this reference had been prepared before.")


class TimingsBody(BaseModel):
    """Wall-clock seconds by stage. Steps shared with other requests count in full."""

    face_s: float
    queue_s: float = Field(description="Waiting in the engine.")
    encode_s: float
    denoise_s: float
    decode_s: float
    compress_s: float = Field(description="Writing the JPEG, PNG or WebP.")
    route_s: float = Field(description="On the way to a replica and back: waiting for one with room, and transport.")
    identity_s: float | None = Field(default=None, description="Measuring faces; null where that was not asked for.")
    total_s: float = Field(description="From the first byte read to the answer; `X-Execution-Time-Sec`.")


class ModelBody(BaseModel):
    """The model that drew."""

    id: str
    title: str


class WarningBody(BaseModel):
    """Something the caller may want to know about a picture that was drawn all the same."""

    code: str
    message: str


class CandidateBody(BaseModel):
    """One picture that was drawn to choose from."""

    seed: int
    similarity: float | None = Field(description="To the reference, 0 to 1; null where one of the two shows no face.")


class GenerationAnswer(BaseModel):
    """The answer to ``Accept: application/json``."""

    model_config = ConfigDict(title="GenerationResponse")

    request_id: str
    image: str = Field(
        description="The picture as a data URL: a JPEG, or in an event stream the picture type that `Accept` names too."
    )
    width: int
    height: int
    drawn_width: int = Field(description="Smaller than `width` where the model draws at its native size.")
    drawn_height: int
    is_upscaled: bool = Field(description="Whether the picture was drawn smaller and scaled up.")
    seed: int
    model: ModelBody
    face: FaceBody
    face_similarity: float | None = Field(
        description="How alike the faces in picture and reference are; null where not asked for, or where one of the "
        "two shows no face, which is then a warning."
    )
    candidates: list[CandidateBody] | None = Field(
        description="Every picture drawn, by seed; the answer is the most similar. Null where similarity was not asked "
        "for."
    )
    cost_usd: float = Field(description="Of all candidates.")
    device_s: float = Field(description="Seconds of the device this request is charged for, all candidates together.")
    execution_time_s: float
    gpu_type: str
    timings: TimingsBody
    warnings: list[WarningBody]


class FieldProblemBody(BaseModel):
    """What is wrong with one field."""

    field: str
    problem: str


class ErrorDetailsBody(BaseModel):
    """What else is known of an error."""

    request_id: str
    fields: list[FieldProblemBody] | None = Field(default=None, description="Every faulty field of the request.")
    retry_after_s: float | None = Field(default=None, description="With 429 and 503: when to try again.")
    status: int | None = Field(default=None, description="In an event stream: the status this would have had.")
    best_similarity: float | None = Field(default=None, description="With 422: the most that was reached.")
    candidates: list[CandidateBody] | None = Field(default=None, description="With 422: every picture drawn.")
    cost_usd: float | None = Field(default=None, description="With 422: what they cost.")


class ErrorBody(BaseModel):
    """Every answer that is not a success."""

    error: str = Field(description="One sentence a person can act on.")
    type: str = Field(description="The error's class.")
    details: ErrorDetailsBody


class StartingEvent(BaseModel):
    """`starting`: no replica of a stage is ready, so the request waits for one."""

    stage: str
    elapsed_s: float
    expected_s: float | None = Field(description="Null where this service has not started one yet.")
    message: str


class QueuedEvent(BaseModel):
    """`queued`: a replica took the request in; of several candidates, the first one."""

    position: int = Field(description="Among the requests of that replica; 1 where there is no other.")
    predicted_wait_s: float = Field(description="Until the first step.")
    predicted_device_s: float = Field(description="Seconds of the device that this request takes.")


class StepEvent(BaseModel):
    """`step`: so many steps are done, of all candidates together."""

    step: int
    num_steps: int
    remaining_s: float = Field(description="Until the last step, at the present pace.")
    preview: str | None = Field(description="With every `preview_every`-th step: a small JPEG as a data URL.")


class RestartedEvent(BaseModel):
    """`restarted`: the replica ended under the request; the steps begin again, and lead to the same picture."""

    message: str = "the replica that drew this ended; another begins again"


class SizeBody(BaseModel):
    """Sizes a model draws at, and sizes that may be asked for, in pixels."""

    native_width: int
    native_height: int
    draws_at: Literal["requested", "native"]
    multiple_of: int
    min_side: int
    max_side: int
    max_pixels: int


class LimitsBody(BaseModel):
    """Ceilings of a request's values."""

    max_prompt_chars: int
    max_steps: int
    max_cfg: float
    max_guidance: float
    max_candidates: int = Field(
        description="0 where this service measures no faces; `score`, `num_candidates` and `min_similarity` are then "
        "refused."
    )
    max_body_bytes: int
    max_reference_bytes: int
    max_reference_pixels: int
    request_timeout_s: float


class LicenceBody(BaseModel):
    """Under which terms a model's weights, and so its pictures, may be used."""

    name: str
    url: str
    is_commercial_use_allowed: bool


class ModelCard(BaseModel):
    """One model that this service draws with."""

    id: str
    object: Literal["model"] = "model"
    title: str
    size: SizeBody
    limits: LimitsBody
    licence: LicenceBody


class ModelList(BaseModel):
    """The answer of ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class StageBody(BaseModel):
    """How one stage is."""

    name: str
    is_ready: bool = Field(description="A request that comes now will be served.")
    is_awake: bool = Field(description="It can begin at once; otherwise it waits for a replica to start.")
    reason: str = Field(description="Empty where the stage is ready and awake.")


class ReadyAnswer(BaseModel):
    """The answer of ``GET /ready``."""

    is_ready: Literal[True] = True
    is_awake: bool = Field(description="Every stage is: a picture can begin at once.")
    stages: list[StageBody]


class HealthAnswer(BaseModel):
    """The answer of ``GET /health``."""

    status: Literal["alive"] = "alive"
