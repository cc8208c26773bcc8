"""Whether requests are taken, and whether a picture can begin at once: what Serve's controller says of every stage.

A stage is *ready* where a request that comes now will be served. It may still have to wait for a replica: a stage that
was scaled to zero is asleep, and the request itself wakes it. So load balancers send to what is ready; were only what
is awake called ready, nobody would ever wake the rest. A stage that has not served since it was deployed is not ready,
nor one whose replicas died.

Asking a stage itself would queue behind pictures, and wake it where it sleeps. That is done only where the controller
can't be reached, or knows nothing of the stage: after an update that failed, while older replicas go on serving.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from serve_app.one_thread import OneThread
from serve_app.stages import INGRESS, StageStatus

logger = logging.getLogger(__name__)

MAX_AGE_S: Final = 0.5
"""However often ``/ready`` is asked, the controller is asked at most twice a second."""

TIMEOUT_S: Final = 2.0
"""How long the controller, and then a stage, may take to answer; 25 ms were seen, with nothing else to do."""

SERVING: Final = frozenset({"RUNNING", "UPDATING", "RECOVERING", "PENDING_MIGRATION"})
"""``ray.serve.schema.ReplicaState`` of replicas that take requests: also those whose settings are being changed, that a
new controller is getting to know again, or whose node is about to go."""


class Readiness:
    """Answers for all stages, from a moment ago.

    Args:
        deployments: what Serve knows of the application's deployments by name (``DeploymentDetails`` as dictionaries),
            or None where it can't say. Blocks, so a thread runs it.
        probes: for every stage behind this process, a call that it answers when it can serve.
        clock: seconds, monotonic.
        wall_s: seconds since 1970, as Serve's controller counts.
    """

    def __init__(
        self,
        *,
        deployments: Callable[[], Mapping[str, Any] | None],
        probes: Mapping[str, Callable[[], Awaitable[object]]],
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._deployments = OneThread(deployments)
        self._probes = probes
        self._timeout_s = timeout_s
        self._clock = clock
        self._wall_s = wall_s
        self._asking = asyncio.Lock()
        self._asked_s = float("-inf")
        self._statuses: tuple[StageStatus, ...] = ()

    async def statuses(self) -> tuple[StageStatus, ...]:
        """How every stage is, the ingress first: that it is ready, nobody needs to ask."""
        async with self._asking:
            if self._clock() - self._asked_s >= MAX_AGE_S:
                deployments = await self._known_deployments()
                behind = (self._status(name, probe, deployments.get(name)) for name, probe in self._probes.items())
                self._statuses = (StageStatus(name=INGRESS, is_ready=True), *await asyncio.gather(*behind))
                self._asked_s = self._clock()
        return self._statuses

    async def _known_deployments(self) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._deployments() or {}
        except TimeoutError:
            logger.warning("Serve's controller did not answer within %g s", self._timeout_s)
            return {}

    async def _status(
        self, name: str, probe: Callable[[], Awaitable[object]], deployment: Mapping[str, Any] | None
    ) -> StageStatus:
        if deployment is not None:
            return told_status(name, deployment, wall_s=self._wall_s())
        try:
            async with asyncio.timeout(self._timeout_s):
                await probe()
        except Exception as error:
            # Whatever it is, it means "not ready"; the stage's own log has the rest.
            logger.info("%s does not answer: %s", name, type(error).__name__)
            return StageStatus(name=name, is_ready=False, reason="not deployed, and it does not answer")
        return StageStatus(name=name, is_ready=True)


def told_status(name: str, deployment: Mapping[str, Any], *, wall_s: float) -> StageStatus:
    """A stage's status from Serve's ``DeploymentDetails``. Serve's own messages stay inside: they hold tracebacks."""
    replicas = deployment["replicas"]
    if any(replica["state"] in SERVING for replica in replicas):
        return StageStatus(name=name, is_ready=True)
    if deployment["target_num_replicas"] == 0:
        return StageStatus(name=name, is_ready=True, is_awake=False, reason="asleep; the next request starts a replica")
    state = str(getattr(deployment["status"], "value", deployment["status"]))
    starting = [replica for replica in replicas if replica["state"] == "STARTING"]
    if state == "UPSCALING" and starting:  # woken: the first deployment and what died are UPDATING and UNHEALTHY
        phase = "loading" if any(replica.get("node_id") for replica in starting) else "waiting for a node"
        return StageStatus(
            name=name,
            is_ready=True,
            is_awake=False,
            reason=f"starting a replica: {phase}",
            phase=phase,
            starting_s=max(0.0, wall_s - min(replica["start_time_s"] for replica in starting)),
            expected_start_s=_cold_start_s(deployment),
        )
    return StageStatus(
        name=name,
        is_ready=False,
        is_awake=False,
        reason=f"{state.lower()}: no replica is running, {len(replicas)} on the way",
    )


def _cold_start_s(deployment: Mapping[str, Any]) -> float | None:
    """What the operator says that a start takes: the scaling policy has to know it."""
    autoscaling = (deployment.get("deployment_config") or {}).get("autoscaling_config") or {}
    seconds = ((autoscaling.get("policy") or {}).get("policy_kwargs") or {}).get("cold_start_s")
    return float(seconds) if isinstance(seconds, int | float) else None
