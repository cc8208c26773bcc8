"""The stages behind the ingress with something before some of them."""

from __future__ import annotations

from serve_app.stages import (
    Backend,
    DrawJob,
    DrawResult,
    FaceJob,
    FaceResult,
    IdentityJob,
    IdentityResult,
    OnDrawEvent,
    StageStarting,
    StageStatus,
)


class WrappedBackend:
    """A :class:`serve_app.stages.Backend` that passes everything on; subclasses override what they change."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def prepare(self, job: FaceJob) -> FaceResult:
        """See :meth:`serve_app.stages.Backend.prepare`."""
        return await self._backend.prepare(job)

    async def draw(self, job: DrawJob, on_event: OnDrawEvent | None = None) -> DrawResult:
        """See :meth:`serve_app.stages.Backend.draw`."""
        return await self._backend.draw(job, on_event)

    async def identify(self, job: IdentityJob) -> IdentityResult:
        """See :meth:`serve_app.stages.Backend.identify`."""
        return await self._backend.identify(job)

    async def starting(self) -> StageStarting | None:
        """See :meth:`serve_app.stages.Backend.starting`."""
        return await self._backend.starting()

    async def statuses(self) -> tuple[StageStatus, ...]:
        """See :meth:`serve_app.stages.Backend.statuses`."""
        return await self._backend.statuses()
