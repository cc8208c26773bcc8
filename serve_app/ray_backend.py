"""The stages behind the ingress when they are Ray Serve deployments: one replay, plain errors, true cancellation."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from engine.errors import EngineStoppedError
from serve_app.errors import StageUnavailableError, TooManyRequestsError, is_expected, unwrap
from serve_app.stages import (
    DEPLOYMENTS,
    FACE_STAGE,
    FLUX_REPLICA,
    DrawJob,
    DrawResult,
    FaceJob,
    FaceResult,
    StageStatus,
)

logger = logging.getLogger(__name__)

_STATUS_TTL_S: Final = 0.5
"""However often ``/ready`` is asked, the controller is asked at most twice a second."""

_STATUS_TIMEOUT_S: Final = 5.0


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
        self._app_name = app_name
        self._on_replay = on_replay
        self._asking = asyncio.Lock()
        self._asked_s = float("-inf")
        self._statuses: tuple[StageStatus, ...] = ()

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
        """What Serve's controller says of every stage.

        Asking the stages themselves would queue behind pictures, and a busy service would call itself not ready.
        While the controller can't be reached, the last answer stands: requests are served without it.
        """
        async with self._asking:
            if time.monotonic() - self._asked_s >= _STATUS_TTL_S:
                try:
                    async with asyncio.timeout(_STATUS_TIMEOUT_S):
                        status = await asyncio.to_thread(serve.status)
                    self._statuses = stage_statuses(status.applications.get(self._app_name))
                except (TimeoutError, RayError, RayServeException):
                    logger.warning("Serve's controller can't be reached; the last known state stands", exc_info=True)
                self._asked_s = time.monotonic()
        return self._statuses or tuple(
            StageStatus(name=name, is_ready=False, reason="its state is not known yet") for name in DEPLOYMENTS
        )


def stage_statuses(application: Any) -> tuple[StageStatus, ...]:
    """Every stage's status from Serve's overview of the application (``None`` where Serve does not know it).

    A stage is ready with one running replica; and where Serve calls it healthy without any, for then it was scaled to
    zero and wakes up with the next request. Serve's own messages stay inside: they hold tracebacks.
    """
    deployments = {} if application is None else application.deployments
    return tuple(_stage_status(name, deployments.get(name)) for name in DEPLOYMENTS)


def _stage_status(name: str, deployment: Any) -> StageStatus:
    if deployment is None:
        return StageStatus(name=name, is_ready=False, reason="not deployed yet")
    num_running = deployment.replica_states.get("RUNNING", 0)
    state = str(deployment.status.value)
    if num_running or (state == "HEALTHY" and not deployment.replica_states):
        return StageStatus(name=name, is_ready=True)
    num_starting = sum(deployment.replica_states.values())
    return StageStatus(
        name=name, is_ready=False, reason=f"{state.lower()}: no replica is running, {num_starting} on the way"
    )


class _StageDied(Exception):
    """The replica or its engine ended under this request; another may do better."""


async def _call(method: Any, job: Any) -> Any:
    """One call of a stage, its errors in our own words."""
    response = method.remote(job)
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
