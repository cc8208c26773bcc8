"""What Ray Serve does unless told otherwise: so many requests a replica, wanted for so long before anything changes."""

from __future__ import annotations

import collections
import math
import statistics


class RequestCounting:
    """See ``ray.serve.autoscaling_policy.replica_queue_length_autoscaling_policy``.

    Args:
        per_replica: requests that a replica may have, waiting and running.
        max_replicas, min_replicas: bounds of the answer.
        look_back_s: counts are averaged over so long; 0 takes the newest.
        upscale_delay_s, downscale_delay_s: how long a change must have been wanted.
    """

    def __init__(
        self,
        *,
        per_replica: float,
        max_replicas: int,
        min_replicas: int = 0,
        look_back_s: float = 30.0,
        upscale_delay_s: float = 30.0,
        downscale_delay_s: float = 600.0,
    ) -> None:
        self._per_replica = per_replica
        self._max_replicas, self._min_replicas = max_replicas, min_replicas
        self._look_back_s = look_back_s
        self._delay_s = {1: upscale_delay_s, -1: downscale_delay_s}
        self._counts: collections.deque[tuple[float, float]] = collections.deque()
        self._since: tuple[int, float] = (0, 0.0)  # direction of change, since when

    def replicas(self, now_s: float, *, num_requests: float, num_target: int) -> int:
        """How many there shall be, where ``num_target`` were asked for last."""
        self._counts.append((now_s, num_requests))
        while now_s - self._counts[0][0] > self._look_back_s:
            self._counts.popleft()
        wanted = math.ceil(statistics.fmean(count for _, count in self._counts) / self._per_replica)
        wanted = min(self._max_replicas, max(self._min_replicas, wanted))
        if num_target == 0:  # from nothing to something there is no delay
            return max(wanted, int(num_requests > 0))
        direction = (wanted > num_target) - (wanted < num_target)
        if direction != self._since[0]:
            self._since = (direction, now_s)
        is_due = direction != 0 and now_s - self._since[1] >= self._delay_s[direction]
        return wanted if is_due else num_target
