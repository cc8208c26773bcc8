"""What passes between the deployments, and what the ingress needs of them. Plain data; no Ray, no torch.

Everything here is pickled between processes, so it stays small: a crop of 224×224 or one embedding travels to the
Flux replica, never the caller's picture, and an encoded file travels back, never raw pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol

from engine.face.identity import IdentityVector
from engine.request import ImageRequest, Reference, StageSeconds

INGRESS: Final = "Ingress"
FACE_STAGE: Final = "FaceStage"
FLUX_REPLICA: Final = "FluxReplica"
IDENTITY_STAGE: Final = "IdentityStage"
DEPLOYMENTS: Final = (INGRESS, FACE_STAGE, FLUX_REPLICA)
"""Names of the three deployments that are always there, in the order of a request's road."""
OPTIONAL_DEPLOYMENTS: Final = (IDENTITY_STAGE,)
"""Names of those that are there where the settings ask for them."""

MIN_WAIT_S: Final = 1e-3
"""What is left to the engine of a ``max_wait_s`` that is as good as over; its refusal is the right answer then."""

FacePolicy = Literal["prefer", "require", "ignore"]
FaceProvider = Literal["CPU", "GPU"]
Priority = Literal["low", "normal", "high"]
PictureFormat = Literal["jpeg", "png", "webp"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FaceJob:
    """A reference picture as it came in.

    Attributes:
        data: the encoded picture.
        media_type: what the caller says it is.
        policy: what to do about faces.
        provider: where the caller wants it encoded.
        trace: W3C's headers of the caller's span, see :mod:`serve_app.tracing`.
    """

    data: bytes
    media_type: str
    policy: FacePolicy
    provider: FaceProvider
    trace: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FaceBox:
    """A face in the reference picture, in pixels after EXIF orientation; ``confidence`` from 0 to 1."""

    left_px: int
    top_px: int
    width_px: int
    height_px: int
    confidence: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FaceResult:
    """A reference picture, ready for the engine.

    Attributes:
        reference: the crop, or its embedding.
        provider: where the embedding is computed; ``GPU`` where the reference is a crop.
        box: the face that was chosen, ``None`` where the whole picture was taken.
        warning: a sentence for the caller, empty where all went as asked.
        width_px, height_px: size of the picture as it came in, after EXIF orientation.
        is_cached: whether it had been prepared before.
        elapsed_s: seconds the stage took.
    """

    reference: Reference
    provider: FaceProvider
    box: FaceBox | None
    warning: str
    width_px: int
    height_px: int
    is_cached: bool
    elapsed_s: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PictureEncoding:
    """How to write the finished picture. ``quality`` is that of JPEG and WebP, 1 to 100; PNG is lossless."""

    format: PictureFormat
    quality: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DrawJob:
    """A picture to draw and how to write it. ``trace``: see :class:`FaceJob`."""

    request: ImageRequest
    encoding: PictureEncoding
    trace: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DrawResult:
    """A finished picture.

    Attributes:
        data: the encoded picture.
        drawn_width_px, drawn_height_px: size the network drew at.
        stages: wall-clock seconds in the engine's stages.
        compress_s: seconds for writing the file.
        device_s: seconds of the device this request is charged for.
        device_name: such as ``NVIDIA H100 80GB HBM3``, or ``CPU``.
    """

    data: bytes
    drawn_width_px: int
    drawn_height_px: int
    stages: StageSeconds
    compress_s: float
    device_s: float
    device_name: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class IdentityJob:
    """A picture whose largest face is to be measured: a reference as it came in, or one that was drawn.

    Attributes:
        data: the encoded picture.
        media_type: what it is said to be.
        trace: see :class:`FaceJob`.
    """

    data: bytes
    media_type: str
    trace: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class IdentityResult:
    """Who is in a picture; ``vector`` is None where no face was found."""

    vector: IdentityVector | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StageStarting:
    """A stage has no replica yet, and requests wait for one.

    Attributes:
        stage: its name.
        elapsed_s: how long it has been starting, as far as is known here.
        expected_s: how long that takes, from the last time or as the operator says; None where nobody knows.
        phase: what it waits for: ``waiting for a node``, or ``loading``; empty where that is not known.
    """

    stage: str
    elapsed_s: float
    expected_s: float | None
    phase: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DrawQueued:
    """A replica took the request in.

    Attributes:
        position: its place among the requests of that replica as it came; 1 where no other was there.
        predicted_wait_s: until its first step.
        predicted_device_s: seconds of the device its own work will take.
    """

    position: int
    predicted_wait_s: float
    predicted_device_s: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DrawStep:
    """``step`` of ``num_steps`` is done.

    Attributes:
        remaining_s: until the last step, at the pace of the latest ones.
        preview: a small JPEG of the picture as it may become, where one was asked for with this step.
    """

    step: int
    num_steps: int
    remaining_s: float
    preview: bytes | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DrawRestarted:
    """The replica ended under the request; another begins again, from the first step to the same picture."""


DrawEvent = StageStarting | DrawQueued | DrawStep | DrawRestarted

OnDrawEvent = Callable[[DrawEvent], None]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StageStatus:
    """How a stage is. See :mod:`serve_app.readiness`.

    Attributes:
        name: the stage.
        is_ready: a request that comes now will be served.
        is_awake: it can begin at once; otherwise it waits for a replica to start.
        reason: where it is not ready or not awake, why, in words for an operator's eyes at a load balancer.
        phase: what a start that is under way waits for.
        starting_s: for so long, as far as is known.
        expected_start_s: a start takes about so long, as far as is known.
    """

    name: str
    is_ready: bool
    is_awake: bool = True
    reason: str = ""
    phase: str = ""
    starting_s: float | None = None
    expected_start_s: float | None = None


class Backend(Protocol):
    """The stages behind the ingress."""

    async def prepare(self, job: FaceJob) -> FaceResult:
        """Find the face, crop and where asked encode it.

        Raises:
            ReferenceImageError: the picture can't be used.
            StageUnavailableError: the stage can't be reached.
        """
        ...

    async def draw(self, job: DrawJob, on_event: OnDrawEvent | None = None) -> DrawResult:
        """Draw one picture. Cancelling the awaiting task frees the device at the next step.

        Args:
            on_event: hears how it goes. Without it nothing but the result travels between the stages.

        Raises:
            EngineError: see :mod:`engine.errors`.
            StageUnavailableError: the stage can't be reached.
        """
        ...

    async def identify(self, job: IdentityJob) -> IdentityResult:
        """Measure the largest face of a picture.

        Raises:
            ReferenceImageError: the picture can't be used.
            StageUnavailableError: the stage can't be reached, or is not part of this application.
        """
        ...

    async def starting(self) -> StageStarting | None:
        """The stage that requests have to wait for because it has no replica yet; never raises."""
        ...

    async def statuses(self) -> tuple[StageStatus, ...]:
        """How every stage is; never raises."""
        ...
