"""What a second try at another replica brings, by simulation: refusals, use of the devices, calls.

``python -m benchmarks.second_try``. Poisson arrivals of four sizes of work; replicas that take what they finish within
20 s, first come first served; a router that takes the shorter of two random queues, counted in requests as Ray Serve
counts them, or in seconds of work. Stdlib only, 1 s for each line.
"""

from __future__ import annotations

import dataclasses
import heapq
import random

from serve_app.second_try import MAX_SAVED, SHARE

WORK_S = (1.0, 2.0, 4.0, 12.0)
MAX_WAIT_S = 20.0
NUM_REQUESTS = 60_000


class Replica:
    """Work in order of arrival."""

    def __init__(self) -> None:
        self.free_s = 0.0
        self._ends_s: list[float] = []

    def num_here(self, now_s: float) -> int:
        """Requests that have not ended."""
        while self._ends_s and self._ends_s[0] <= now_s:
            heapq.heappop(self._ends_s)
        return len(self._ends_s)

    def owed_s(self, now_s: float) -> float:
        """Seconds of work that is left."""
        return max(0.0, self.free_s - now_s)

    def take(self, now_s: float, work_s: float) -> bool:
        """Whether it took the work: only what it finishes in time."""
        if self.owed_s(now_s) + work_s > MAX_WAIT_S:
            return False
        self.free_s = max(self.free_s, now_s) + work_s
        heapq.heappush(self._ends_s, self.free_s)
        return True


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Shares of the requests, and of the devices' time."""

    refused: float
    used: float
    calls: float


def simulate(num_replicas: int, load: float, *, by_work: bool, second_try: bool, seed: int = 0) -> Result:
    """One run. ``load`` is the work that comes in by what the replicas can do."""
    rng = random.Random(seed)
    replicas = [Replica() for _ in range(num_replicas)]
    rate = load * num_replicas * len(WORK_S) / sum(WORK_S)
    now_s = done_s = 0.0
    num_refused = num_calls = 0
    saved = MAX_SAVED

    def offer(work_s: float) -> bool:
        pair = rng.sample(replicas, 2)
        queue = Replica.owed_s if by_work else Replica.num_here
        return min(pair, key=lambda replica: queue(replica, now_s)).take(now_s, work_s)

    for _ in range(NUM_REQUESTS):
        now_s += rng.expovariate(rate)
        work_s = rng.choice(WORK_S)
        num_calls += 1
        is_taken = offer(work_s)
        if not is_taken and second_try and saved >= 1.0:
            saved -= 1.0
            num_calls += 1
            is_taken = offer(work_s)
        if is_taken:
            saved = min(MAX_SAVED, saved + SHARE)
            done_s += work_s
        num_refused += not is_taken
    return Result(
        refused=num_refused / NUM_REQUESTS, used=done_s / (now_s * num_replicas), calls=num_calls / NUM_REQUESTS
    )


def main() -> None:
    """Print the table."""
    print("replicas  load  router    refused         device use      calls a request")
    print("                          one try  two    one try  two    one try  two")
    for num_replicas in (2, 4, 16):
        for load in (0.8, 1.0, 1.5, 10.0):
            for by_work in (False, True):
                one, two = (simulate(num_replicas, load, by_work=by_work, second_try=two) for two in (False, True))
                print(
                    f"{num_replicas:8}  {load:4}  {'seconds ' if by_work else 'requests'}"
                    f"  {one.refused:7.1%}  {two.refused:5.1%}  {one.used:6.1%}  {two.used:5.1%}"
                    f"  {one.calls:6.2f}  {two.calls:5.2f}"
                )


if __name__ == "__main__":
    main()
