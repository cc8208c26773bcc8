"""The CPU stage that measures faces: from a picture to its identity vector. Optional, off by default.

A deployment of its own, not a part of the face stage, which lies on every request's road: dlib keeps the interpreter
lock for 0.1 s a face, is a package that not everybody wants installed, and is needed by few requests, so it scales
apart from the others and is absent where it is not asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Final

from engine.cache import ByteBudgetCache
from engine.face.decode import ImageLimits, decode_image
from engine.face.detect import YuNetDetector
from engine.face.identity import DlibIdentity, IdentityModel
from engine.profile import ModelProfile
from serve_app import tracing
from serve_app.metrics.recorder import Recorder
from serve_app.metrics.replica import ReplicaStart
from serve_app.scaling.load import WorkClock
from serve_app.settings import LimitSettings
from serve_app.stages import IDENTITY_STAGE, IdentityJob, IdentityResult

_ENTRY_BYTES: Final = 1024
"""A vector of 512 bytes, its key, and what Python keeps around them."""

_MAX_BYTES_PER_PIXEL: Final = 4
"""Of a picture that was drawn: PNG's worst, noise, with room."""


class IdentityStage:
    """Measures references and drawn pictures alike, each picture once as long as its vector stays in the cache."""

    def __init__(
        self,
        open_model: Callable[[], IdentityModel],
        *,
        limits: ImageLimits,
        cache_bytes: int,
        open_recorder: Callable[[], Recorder] = Recorder,
    ) -> None:
        self._recorder = open_recorder()
        start = ReplicaStart(self._recorder, IDENTITY_STAGE)
        self._model = open_model()
        self._limits = limits
        self._cache: ByteBudgetCache[str, IdentityResult] = ByteBudgetCache(cache_bytes)
        self._work = WorkClock()
        start.done()

    def __del__(self) -> None:
        self._recorder.close()

    async def identify(self, job: IdentityJob) -> IdentityResult:
        """See :meth:`serve_app.stages.Backend.identify`."""
        with self._work.working(), tracing.span(IDENTITY_STAGE, parent=job.trace):
            return await asyncio.to_thread(self._identify, job)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Serve, for :mod:`serve_app.scaling.policy`."""
        return self._work.report()

    async def check_health(self) -> None:
        """Asked by Serve and by the ingress: to answer is enough."""

    def _identify(self, job: IdentityJob) -> IdentityResult:
        key = hashlib.sha256(job.data).hexdigest()
        result = self._cache.get(key)
        if result is None:
            image = decode_image(job.data, media_type=job.media_type, limits=self._limits)
            result = IdentityResult(vector=self._model.vector(image))
            self._cache.put(key, result, size_bytes=_ENTRY_BYTES)
        return result


def open_model(*, min_confidence: float) -> IdentityModel:
    """The network, on faces that are found as the face stage finds them.

    Raises:
        ModelLoadError: the optional packages are missing.
    """
    return DlibIdentity(YuNetDetector(min_confidence=min_confidence))


def picture_limits(limits: LimitSettings, profile: ModelProfile) -> ImageLimits:
    """Of all that is measured: references, which the face stage has let pass, and the largest picture drawn."""
    max_drawn_bytes = _MAX_BYTES_PER_PIXEL * profile.size.max_pixels
    return ImageLimits(
        max_bytes=max(limits.max_reference_bytes, max_drawn_bytes),
        max_pixels=max(limits.max_reference_pixels, profile.size.max_pixels),
    )
