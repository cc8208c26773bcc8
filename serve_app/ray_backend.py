"""The stages behind the ingress when they are Ray Serve deployments: one replay, plain errors, true cancellation."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import secrets
from collections.abc import Callable
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from engine.errors import EngineStoppedError
from serve_app.errors import StageUnavailableError, TooManyRequestsError, is_expected, unwrap
from serve_app.readiness import Readiness
from serve_app.stages import FACE_STAGE, FLUX_REPLICA, DrawJob, DrawResult, FaceJob, FaceResult, StageStatus

logger = logging.getLogger(__name__)


class RayBackend:
    """See :class:`serve_app.stages.Backend`.

    A request whose replica died, or whose engine stopped, is run again once: drawing depends on nothing but the
    request, so the second run gives the same picture.
    """

    def __init__(
        self,
        *,
        face_stage: DeploymentHandle,
        flux_replica: DeploymentHandle,
        app_name: str,
        on_replay: Callable[[str], None],
    ) -> None:
        self._face_stage = face_stage
        self._flux_replica = flux_replica
        self._on_replay = on_replay
        self._readiness = Readiness(
            application=functools.partial(_application, app_name),
            probes={
                FACE_STAGE: functools.partial(_call, face_stage.check_health),
                FLUX_REPLICA: functools.partial(_call, flux_replica.check_health),
            },
        )

    async def prepare(self, job: FaceJob) -> FaceResult:
        """See :meth:`serve_app.stages.Backend.prepare`."""
        try:
            result: FaceResult = await _call(self._face_stage.prepare, job)
        except _StageDied:
            self._on_replay(FACE_STAGE)
            result = await _last_call(FACE_STAGE, self._face_stage.prepare, job)
        return result

    async def draw(self, job: DrawJob) -> DrawResult:
        """See :meth:`serve_app.stages.Backend.draw`."""
        try:
            result: DrawResult = await _call(self._flux_replica.draw, job)
        except _StageDied:
            self._on_replay(FLUX_REPLICA)
            # A new id: the replica may only have been out of reach, and still hold the first run.
            request_id = f"{job.request.request_id}.{secrets.token_hex(2)}"
            again = dataclasses.replace(job, request=dataclasses.replace(job.request, request_id=request_id))
            result = await _last_call(FLUX_REPLICA, self._flux_replica.draw, again)
        return result

    async def statuses(self) -> tuple[StageStatus, ...]:
        """See :class:`serve_app.readiness.Readiness`."""
        return await self._readiness.statuses()


class _StageDied(Exception):
    """The replica or its engine ended under this request; another may do better."""


def _application(name: str) -> Any:
    """Serve's overview of an application; None where its controller does not know it or can't be reached."""
    try:
        return serve.status().applications.get(name)
    except (RayError, RayServeException):
        logger.warning("Serve's controller can't be reached", exc_info=True)
        return None


async def _call(method: Any, *jobs: Any) -> Any:
    """One call of a stage, its errors in our own words."""
    response = method.remote(*jobs)
    try:
        return await response
    except asyncio.CancelledError:
        # Serve cancels nested calls when it cancels us, but not when we give up by ourselves (deadline, disconnect).
        response.cancel()
        raise
    except RayActorError as error:
        logger.warning("a replica died under a request: %s", type(error).__name__)
        raise _StageDied from error
    except BackPressureError as error:
        raise TooManyRequestsError("too many requests are waiting already; try again shortly") from error
    except (RayError, RayServeException) as error:
        original = unwrap(error)
        if isinstance(original, EngineStoppedError):
            raise _StageDied from error
        if is_expected(original):
            raise original from None
        if original is not error:
            raise  # a bug of ours in the stage: answered as such, and logged with its remote traceback
        logger.warning("a stage can't be reached", exc_info=True)
        raise StageUnavailableError("a stage can't be reached; try again shortly") from error


async def _last_call(stage: str, method: Any, job: Any) -> Any:
    try:
        return await _call(method, job)
    except _StageDied as error:
        raise StageUnavailableError(
            f"the {stage} stage ended twice while it worked on this request; try again shortly"
        ) from error
