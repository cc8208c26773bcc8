"""Which stage requests wait for because it has no replica yet, since when, and for about how long."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from serve_app.stages import StageStarting, StageStatus


class StartingWatch:
    """Remembers, from one look to the next, since when a stage has had no replica.

    How long a start takes is known once one was watched to its end; until then, what the status says is passed on.
    """

    def __init__(
        self,
        statuses: Callable[[], Awaitable[tuple[StageStatus, ...]]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._statuses = statuses
        self._clock = clock
        self._since_s: dict[str, float] = {}
        self._took_s: dict[str, float] = {}

    async def starting(self) -> StageStarting | None:
        """The first stage on a request's road that is not ready."""
        now_s, first = self._clock(), None
        for status in await self._statuses():
            if status.is_ready and status.is_awake:
                if (since_s := self._since_s.pop(status.name, None)) is not None:
                    self._took_s[status.name] = now_s - since_s
                continue
            # Others may have watched it start for longer, and Serve's controller from the beginning.
            since_s = min(self._since_s.get(status.name, now_s), now_s - (status.starting_s or 0.0))
            self._since_s[status.name] = since_s
            first = first or StageStarting(
                stage=status.name,
                elapsed_s=now_s - since_s,
                expected_s=self._took_s.get(status.name, status.expected_start_s),
                phase=status.phase,
            )
        return first
