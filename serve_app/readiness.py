"""Whether every stage can serve: what Serve's controller says, and where that is not "ready", the stage's own word.

Asking a stage itself queues behind pictures, and a busy service would call itself not ready; so the controller comes
first. But it can be out of reach while requests are served, and after an update that failed it knows nothing of the
replicas that go on serving.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from serve_app.stages import INGRESS, StageStatus

logger = logging.getLogger(__name__)

MAX_AGE_S: Final = 0.5
"""However often ``/ready`` is asked, the controller is asked at most twice a second."""

TIMEOUT_S: Final = 2.0
"""How long the controller, and then a stage, may take to answer; 25 ms were seen, with nothing else to do."""


class Readiness:
    """Answers for all stages, from a moment ago.

    Args:
        application: Serve's overview of the application, or None where there is none. Blocks, so a thread runs it.
        probes: for every stage behind this process, a call that it answers when it can serve.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        application: Callable[[], Any],
        probes: Mapping[str, Callable[[], Awaitable[object]]],
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._application = application
        self._probes = probes
        self._timeout_s = timeout_s
        self._clock = clock
        self._asking = asyncio.Lock()
        self._asked_s = float("-inf")
        self._statuses: tuple[StageStatus, ...] = ()

    async def statuses(self) -> tuple[StageStatus, ...]:
        """How every stage is, the ingress first: that it is ready, nobody needs to ask."""
        async with self._asking:
            if self._clock() - self._asked_s >= MAX_AGE_S:
                application = await self._overview()
                behind = (self._status(name, probe, application) for name, probe in self._probes.items())
                self._statuses = (StageStatus(name=INGRESS, is_ready=True), *await asyncio.gather(*behind))
                self._asked_s = self._clock()
        return self._statuses

    async def _overview(self) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.to_thread(self._application)
        except TimeoutError:
            logger.warning("Serve's controller did not answer within %g s", self._timeout_s)
            return None

    async def _status(self, name: str, probe: Callable[[], Awaitable[object]], application: Any) -> StageStatus:
        told = told_status(name, application)
        if told.is_ready:
            return told
        try:
            async with asyncio.timeout(self._timeout_s):
                await probe()
        except Exception as error:
            # Whatever it is, it means "not ready"; the stage's own log has the rest.
            logger.info("%s does not answer: %s", name, type(error).__name__)
            return told
        return StageStatus(name=name, is_ready=True)


def told_status(name: str, application: Any) -> StageStatus:
    """A stage's status from Serve's overview of the application (``ApplicationStatusOverview`` or None).

    A stage is ready with one running replica; and where Serve calls it healthy without any, for then it was scaled to
    zero and wakes up with the next request. Serve's own messages stay inside: they hold tracebacks.
    """
    deployment = None if application is None else application.deployments.get(name)
    if deployment is None:
        return StageStatus(name=name, is_ready=False, reason="not deployed, and it does not answer")
    state = str(deployment.status.value)
    num_replicas = sum(deployment.replica_states.values())
    if deployment.replica_states.get("RUNNING", 0) or (state == "HEALTHY" and not num_replicas):
        return StageStatus(name=name, is_ready=True)
    reason = f"{state.lower()}: no replica is running, {num_replicas} on the way"
    return StageStatus(name=name, is_ready=False, reason=reason)
