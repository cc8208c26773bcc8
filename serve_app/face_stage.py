"""The CPU stage: from the picture that came in to a crop, or to the embedding of a crop."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.face.decode import ImageLimits
from engine.face.detect import YuNetDetector
from engine.face.prepare import FacePreparer, PreparedFace
from engine.profile import load_profile
from engine.request import Embedding, Reference
from serve_app import tracing
from serve_app.face_cache import FaceCache
from serve_app.metrics.recorder import Recorder
from serve_app.metrics.replica import ReplicaStart
from serve_app.scaling.load import WorkClock
from serve_app.settings import FaceSettings, LimitSettings
from serve_app.stages import FACE_STAGE, FaceBox, FaceJob, FaceProvider, FaceResult


class ImageEncoder(Protocol):
    """CLIP's vision tower."""

    def encode(self, crops: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """``(B, S, S, 3)`` sRGB to ``(B, dim)``."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FaceTools:
    """What the stage works with. Without an encoder, every crop is encoded where the picture is drawn."""

    preparer: FacePreparer
    encoder: ImageEncoder | None


class FaceStage:
    """Prepares references: decodes, finds the face, crops, and encodes where this stage has an encoder.

    The same bytes asked for in the same way are prepared once, as long as the result stays in the cache.
    """

    def __init__(
        self, open_tools: Callable[[], FaceTools], *, cache_bytes: int, open_recorder: Callable[[], Recorder] = Recorder
    ) -> None:
        self._recorder = open_recorder()
        start = ReplicaStart(self._recorder, FACE_STAGE)
        tools = open_tools()
        self._preparer = tools.preparer
        self._encoder = tools.encoder
        self._cache = FaceCache(cache_bytes)
        self._work = WorkClock()
        start.done()

    def __del__(self) -> None:
        self._recorder.close()

    async def prepare(self, job: FaceJob) -> FaceResult:
        """See :meth:`serve_app.stages.Backend.prepare`. Runs in a thread: decoding and CLIP take up to a second."""
        with self._work.working(), tracing.span(FACE_STAGE, parent=job.trace):
            return await asyncio.to_thread(self._prepare, job)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Serve, for :mod:`serve_app.scaling.policy`."""
        return self._work.report()

    async def check_health(self) -> None:
        """Asked by Serve and by the ingress: to answer is enough."""

    def _prepare(self, job: FaceJob) -> FaceResult:
        started_s = time.perf_counter()
        provider: FaceProvider = "CPU" if job.provider == "CPU" and self._encoder is not None else "GPU"
        result = self._cache.get(job, provider)
        if result is None:
            prepared = self._preparer.prepare(job.data, media_type=job.media_type, policy=job.policy)
            result = _result(prepared, self._reference(prepared, provider), provider)
            self._cache.put(job, provider, result)
        return dataclasses.replace(result, elapsed_s=time.perf_counter() - started_s)

    def _reference(self, prepared: PreparedFace, provider: FaceProvider) -> Reference:
        if provider == "GPU" or self._encoder is None:
            return Reference(crop=prepared.crop, key=prepared.key)
        embedding: Embedding = self._encoder.encode(prepared.crop[None])[0]
        # Not the crop's own key: another device, in another precision, makes slightly other numbers of the same crop.
        return Reference(embedding=embedding, key=f"{prepared.key}-cpu")


def open_tools(*, profile_name: str, model_dir: str, settings: FaceSettings, limits: LimitSettings) -> FaceTools:
    """A detector and, where asked for, the profile's CLIP vision tower on the CPU.

    Raises:
        ModelLoadError: no such profile, or the encoder's file is missing or broken.
    """
    profile = load_profile(profile_name)
    encoder: ImageEncoder | None = None
    if settings.cpu_encoder:
        from engine.weights.load import load_image_encoder  # torch, only where it is needed

        encoder = load_image_encoder(profile, str(Path(model_dir).expanduser()), device="cpu")
    preparer = FacePreparer(
        YuNetDetector(min_confidence=settings.min_confidence),
        limits=ImageLimits(max_bytes=limits.max_reference_bytes, max_pixels=limits.max_reference_pixels),
        margin=settings.margin,
        crop_size_px=profile.clip_vision.image_size,
    )
    return FaceTools(preparer=preparer, encoder=encoder)


def _result(prepared: PreparedFace, reference: Reference, provider: FaceProvider) -> FaceResult:
    box = None
    if prepared.box is not None:
        box = FaceBox(
            left_px=prepared.box.left_px,
            top_px=prepared.box.top_px,
            width_px=prepared.box.width_px,
            height_px=prepared.box.height_px,
            confidence=prepared.box.confidence,
        )
    return FaceResult(
        reference=reference,
        provider=provider,
        box=box,
        warning=prepared.warning or "",
        width_px=prepared.image_width_px,
        height_px=prepared.image_height_px,
        is_cached=False,
        elapsed_s=0.0,
    )
