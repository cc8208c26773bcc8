"""The stages behind the ingress when they are Ray Serve deployments: replays, plain errors, true cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

from ray.exceptions import RayActorError, RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from engine.errors import EngineStoppedError
from serve_app.error_answers import is_expected
from serve_app.errors import StageUnavailableError, TooManyRequestsError, unwrap
from serve_app.quarantine import Quarantine, ReplicaDiedError, drawing_of, picture_of
from serve_app.readiness import Readiness
from serve_app.second_try import SecondTry
from serve_app.stages import (
    FACE_STAGE,
    FLUX_REPLICA,
    IDENTITY_STAGE,
    MIN_WAIT_S,
    DrawJob,
    DrawRestarted,
    DrawResult,
    FaceJob,
    FaceResult,
    IdentityJob,
    IdentityResult,
    OnDrawEvent,
    StageStarting,
    StageStatus,
)
from serve_app.starting import StartingWatch

logger = logging.getLogger(__name__)

T = TypeVar("T")

REPLAY_PAUSE_S: Final = 0.5
"""Serve's router hears of a death a moment after us; a replay that meets the same dead replica would count as one more.
"""


class RayBackend:
    """See :class:`serve_app.stages.Backend`.

    A request whose replica died, or whose engine stopped, is run again, at most as often as
    :mod:`serve_app.quarantine` allows: drawing depends on nothing but the request, so every run gives the same picture.

    Args:
        turn: see :class:`serve_app.quarantine.Quarantine`.
    """

    def __init__(
        self,
        *,
        face_stage: DeploymentHandle,
        flux_replica: DeploymentHandle,
        identity_stage: DeploymentHandle | None = None,
        app_name: str,
        on_replay: Callable[[str], None],
        turn: contextlib.AbstractAsyncContextManager[object] | None = None,
    ) -> None:
        self._face_stage = face_stage
        self._flux_replica = flux_replica
        self._flux_streams = flux_replica.options(stream=True)
        self._identity_stage = identity_stage
        self._on_replay = on_replay
        self._quarantine = Quarantine(turn=turn)
        self._second_try = SecondTry()
        stages = {FACE_STAGE: face_stage, FLUX_REPLICA: flux_replica}
        if identity_stage is not None:
            stages[IDENTITY_STAGE] = identity_stage
        self._readiness = Readiness(
            deployments=functools.partial(_deployments, app_name),
            probes={name: functools.partial(_call, stage.check_health) for name, stage in stages.items()},
        )
        self._starting = StartingWatch(self._readiness.statuses)

    async def prepare(self, job: FaceJob) -> FaceResult:
        """See :meth:`serve_app.stages.Backend.prepare`."""
        return await self._until_it_lives(
            FACE_STAGE, picture_of(job.data), lambda _: _call(self._face_stage.prepare, job)
        )

    async def identify(self, job: IdentityJob) -> IdentityResult:
        """See :meth:`serve_app.stages.Backend.identify`."""
        if self._identity_stage is None:
            raise StageUnavailableError(f"this application has no {IDENTITY_STAGE}")
        identify = self._identity_stage.identify
        return await self._until_it_lives(IDENTITY_STAGE, picture_of(job.data), lambda _: _call(identify, job))

    async def draw(self, job: DrawJob, on_event: OnDrawEvent | None = None) -> DrawResult:
        """See :meth:`serve_app.stages.Backend.draw`."""
        started_s = time.monotonic()

        def once(num_replays: int) -> Awaitable[DrawResult]:
            if num_replays and on_event is not None:
                on_event(DrawRestarted())
            run = _again(job, elapsed_s=time.monotonic() - started_s) if num_replays else job
            return self._second_try.run(lambda: self._draw_once(run, on_event))

        return await self._until_it_lives(FLUX_REPLICA, drawing_of(job.request), once)

    async def _until_it_lives(self, stage: str, fingerprint: str, once: Callable[[int], Awaitable[T]]) -> T:
        """The first run that does not end with its replica; ``once`` makes one, told how many there were before."""
        for num_replays in itertools.count():
            if num_replays:
                self._on_replay(stage)
                await asyncio.sleep(num_replays * REPLAY_PAUSE_S)
            try:
                async with self._quarantine.run(f"{stage} {fingerprint}"):
                    return await once(num_replays)
            except ReplicaDiedError:
                logger.warning("a request lost its replica of %s; it is run again", stage)
        raise AssertionError("unreachable")

    async def _draw_once(self, job: DrawJob, on_event: OnDrawEvent | None) -> DrawResult:
        result: DrawResult
        if on_event is None:
            result = await _call(self._flux_replica.draw, job)
        else:
            result = await _follow(self._flux_streams.draw_streamed, job, on_event)
        return result

    async def starting(self) -> StageStarting | None:
        """See :class:`serve_app.starting.StartingWatch`."""
        return await self._starting.starting()

    async def statuses(self) -> tuple[StageStatus, ...]:
        """See :class:`serve_app.readiness.Readiness`."""
        return await self._readiness.statuses()


def _deployments(app_name: str) -> Mapping[str, Any] | None:
    """Serve's details of an application's deployments; None where its controller does not know it or is out of reach.

    What ``serve.status()`` leaves out is needed: whether a replica that starts has a node, and since when it does.
    """
    try:
        application = _get_global_client().get_serve_details()["applications"].get(app_name)
    except (RayError, RayServeException):
        logger.warning("Serve's controller can't be reached", exc_info=True)
        return None
    return None if application is None else application["deployments"]


async def _call(method: Any, *jobs: Any) -> Any:
    """One call of a stage, its errors in our own words."""
    response = method.remote(*jobs)
    with _in_our_words(response):
        return await response


async def _follow(method: Any, job: DrawJob, on_event: OnDrawEvent) -> DrawResult:
    """One call that tells how it goes; the last that it tells is the result."""
    response = method.remote(job)
    with _in_our_words(response):
        async for event in response:
            if isinstance(event, DrawResult):
                return event
            on_event(event)
    raise ReplicaDiedError  # its replica was stopped, and closed the stream before its end


@contextlib.contextmanager
def _in_our_words(response: Any) -> Iterator[None]:
    """Ends the remote work where we stop waiting for it, and turns Ray's errors into ours."""
    try:
        yield
    except asyncio.CancelledError:
        # Serve cancels nested calls when it cancels us, but not when we give up by ourselves (deadline, disconnect).
        response.cancel()
        raise
    except RayActorError as error:
        raise ReplicaDiedError from error
    except BackPressureError as error:
        raise TooManyRequestsError("too many requests are waiting already; try again shortly") from error
    except (RayError, RayServeException) as error:
        original = unwrap(error)
        if isinstance(original, EngineStoppedError):
            raise ReplicaDiedError from error
        if is_expected(original):
            raise original from None
        if original is not error:
            raise  # a bug of ours in the stage: answered as such, and logged with its remote traceback
        logger.warning("a stage can't be reached", exc_info=True)
        raise StageUnavailableError("a stage can't be reached; try again shortly") from error


def _again(job: DrawJob, *, elapsed_s: float) -> DrawJob:
    """The same picture, asked for once more after so long."""
    request, max_wait_s = job.request, job.request.max_wait_s
    # A new id: the replica may only have been out of reach, and still hold the first run.
    request_id = f"{request.request_id}.{secrets.token_hex(2)}"
    if max_wait_s is not None:
        max_wait_s = max(MIN_WAIT_S, max_wait_s - elapsed_s)
    return dataclasses.replace(job, request=dataclasses.replace(request, request_id=request_id, max_wait_s=max_wait_s))
