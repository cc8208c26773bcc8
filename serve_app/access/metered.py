"""Charges a client's quota for what its pictures take of a device."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from engine.errors import DeadlineExceededError, RequestCancelledError
from engine.profile import ModelProfile
from engine.request import ImageRequest
from serve_app.access.visit import current_visit
from serve_app.stages import Backend, DrawJob, DrawResult, OnDrawEvent
from serve_app.wrapped_backend import WrappedBackend


class MeteredBackend(WrappedBackend):
    """The stages, with a meter before the one that draws. See :class:`serve_app.stages.Backend`.

    A finished picture is charged what it took. One that its caller gave up is charged the time until then, at most what
    was promised: otherwise asking and leaving would be free. One that failed is charged nothing.
    """

    def __init__(self, backend: Backend, profile: ModelProfile, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(backend)
        self._profile = profile
        self._clock = clock

    async def draw(self, job: DrawJob, on_event: OnDrawEvent | None = None) -> DrawResult:
        """See :meth:`serve_app.stages.Backend.draw`.

        Raises:
            LimitReachedError, QuotaTooSmallError: the client's quota does not allow it.
        """
        visit = current_visit.get()
        if visit is None:
            return await self._backend.draw(job, on_event)
        work = work_of(job.request, self._profile)
        promised_s = await visit.reserve(work)
        started_s = self._clock()
        try:
            result = await self._backend.draw(job, on_event)
        except (asyncio.CancelledError, DeadlineExceededError, RequestCancelledError):
            visit.device_s += min(promised_s, self._clock() - started_s)
            raise
        visit.device_s += result.device_s
        visit.work += work
        return result


def work_of(request: ImageRequest, profile: ModelProfile) -> float:
    """Megapixels that pass through the network: those of the drawn size, once a step, twice with true guidance.

    Rougher than the engine's cost model, which knows the device but is not here; what one unit takes is learned.
    """
    drawn = profile.check_request(request)
    num_passes = request.num_steps * (2 if request.cfg > 1.0 else 1)
    return drawn.width_px * drawn.height_px * num_passes / 1e6
