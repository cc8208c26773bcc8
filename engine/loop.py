"""The asyncio bridge to an engine: one task that steps it in a thread, futures and progress for callers.

A step takes the device for tens of milliseconds to seconds; run on the event loop it would block health checks
(Ray declares such a replica unhealthy), so every step runs in a worker thread and the loop only hands out results.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable

from engine.errors import EngineStoppedError
from engine.protocol import ImageEngine
from engine.request import EngineEvent, Failed, Finished, ImageRequest, Queued, StepProgress

logger = logging.getLogger(__name__)

ProgressCallback = Callable[[Queued | StepProgress], None]


@dataclasses.dataclass(slots=True)
class _Caller:
    future: asyncio.Future[Finished]
    on_progress: ProgressCallback | None


class EngineLoop:
    """Drives one engine for many concurrent callers on one event loop.

    Args:
        engine: who draws.
        max_step_s: a step that takes longer has hung, and the engine with it: nothing can end it but its process.
        on_broken: called once where the engine broke or hung, after everybody who waited was told.
    """

    def __init__(
        self,
        engine: ImageEngine,
        *,
        max_step_s: float | None = None,
        on_broken: Callable[[], None] | None = None,
    ) -> None:
        self._engine = engine
        self._max_step_s = max_step_s
        self._on_broken = on_broken
        self._callers: dict[str, _Caller] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._broken: EngineStoppedError | None = None

    def start(self) -> None:
        """Begin stepping on the running event loop. Idempotent."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="engine-loop")

    async def draw(self, request: ImageRequest, on_progress: ProgressCallback | None = None) -> Finished:
        """Draw one picture. Cancelling the awaiting task drops the request at the next step.

        Raises:
            EngineError: see :meth:`engine.protocol.ImageEngine.submit`; and what ended the request.
        """
        if self._broken is not None:
            raise self._broken
        queued = self._engine.submit(request)
        future: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()
        self._callers[request.request_id] = _Caller(future=future, on_progress=on_progress)
        self._wake.set()
        try:
            if on_progress is not None:
                on_progress(queued)
            return await future
        finally:
            # Nothing to cancel where the request ended; where its caller went away, the engine drops it.
            self._callers.pop(request.request_id, None)
            self._engine.cancel(request.request_id)

    def check(self) -> None:
        """Raise EngineStoppedError where the engine or this loop can't serve."""
        if self._broken is not None:
            raise self._broken
        if self._task is None or self._task.done():
            raise EngineStoppedError("the engine loop is not running")
        self._engine.check()

    async def close(self) -> None:
        """Stop stepping and close the engine; callers still waiting get EngineStoppedError."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._engine.close()
        self._end_everyone(EngineStoppedError("the engine was closed"))

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._engine.has_work:
                try:
                    events = await self._step()
                except EngineStoppedError as error:
                    self._stop(error)
                    return
                except Exception:
                    logger.exception("engine step failed")
                    self._stop(EngineStoppedError("the engine broke; see the replica's log"))
                    return
                for event in events:
                    self._deliver(event)

    async def _step(self) -> list[EngineEvent]:
        step = asyncio.ensure_future(asyncio.to_thread(self._engine.step))
        try:
            done, _ = await asyncio.wait((step,), timeout=self._max_step_s)
        except asyncio.CancelledError:
            # A thread can't be interrupted, and closing must not race a step that still runs.
            with contextlib.suppress(Exception):
                await step
            raise
        if not done:
            logger.error("a step has taken more than %g s; the engine is given up", self._max_step_s)
            raise EngineStoppedError("the engine hung; see the replica's log")
        return step.result()

    def _deliver(self, event: EngineEvent) -> None:
        caller = self._callers.get(event.request_id)
        if caller is None or caller.future.done():
            return
        match event:
            case StepProgress():
                if caller.on_progress is not None:
                    caller.on_progress(event)
            case Finished():
                caller.future.set_result(event)
            case Failed():
                caller.future.set_exception(event.error)
            case Queued():
                pass  # told already, when it was taken in

    def _stop(self, error: EngineStoppedError) -> None:
        self._broken = error
        self._end_everyone(error)
        if self._on_broken is not None:
            self._on_broken()

    def _end_everyone(self, error: EngineStoppedError) -> None:
        for caller in self._callers.values():
            if not caller.future.done():
                caller.future.set_exception(error)
