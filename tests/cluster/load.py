"""Callers that keep asking, and what became of every request of theirs."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx

from tests.asgi import URL, body

SIDE_PX = 256
NUM_SEEDS = 4


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One request: when, and what came of it. ``status`` 0 stands for a connection that broke."""

    seed: int
    started_s: float
    ended_s: float
    status: int
    digest: str
    error: str = ""


def picture_body(**changes: Any) -> dict[str, Any]:
    """A request of one second: 20 steps of 50 ms, for everybody in the batch together."""
    return body(**({"width": SIDE_PX, "height": SIDE_PX, "steps": 20} | changes))


class Load:
    """Callers of one service, each with one request at a time, until they are told to stop.

    Attributes:
        outcomes: of requests that have ended.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._num_in_flight = 0
        self.outcomes: list[Outcome] = []

    @property
    def num_in_flight(self) -> int:
        """Requests that have been sent and not answered."""
        with self._lock:
            return self._num_in_flight

    @property
    def lost(self) -> list[Outcome]:
        """Requests that ended without their picture."""
        return [outcome for outcome in self.outcomes if outcome.status != 200]

    def num_answered_since(self, moment_s: float) -> int:
        """Pictures whose requests were sent after a moment."""
        return sum(outcome.started_s > moment_s and outcome.status == 200 for outcome in self.outcomes)

    def digests(self) -> dict[int, set[str]]:
        """The different pictures that each seed gave."""
        found: dict[int, set[str]] = collections.defaultdict(set)
        for outcome in self.outcomes:
            if outcome.status == 200:
                found[outcome.seed].add(outcome.digest)
        return found

    @contextlib.contextmanager
    def running(self, num_callers: int, **changes: Any) -> Iterator[Load]:
        """Callers around a block; every request that was sent has ended when it is left."""
        threads = [threading.Thread(target=self._call, args=(index, changes)) for index in range(num_callers)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join()

    def _call(self, index: int, changes: dict[str, Any]) -> None:
        with httpx.Client(base_url=self._url, timeout=120.0, trust_env=False) as client:
            while not self._stopping.is_set():
                outcome = self._one(client, seed=index % NUM_SEEDS, changes=changes)
                with self._lock:
                    self.outcomes.append(outcome)
                if outcome.status != 200:
                    time.sleep(0.2)  # as any client would

    def _one(self, client: httpx.Client, *, seed: int, changes: dict[str, Any]) -> Outcome:
        started_s = time.monotonic()
        with self._lock:
            self._num_in_flight += 1
        try:
            response = client.post(URL, json=picture_body(seed=seed, **changes))
            status, content = response.status_code, response.content
        except httpx.HTTPError as error:
            status, content = 0, repr(error).encode()
        finally:
            with self._lock:
                self._num_in_flight -= 1
        return Outcome(
            seed=seed,
            started_s=started_s,
            ended_s=time.monotonic(),
            status=status,
            digest=hashlib.sha256(content).hexdigest(),
            error="" if status == 200 else content.decode(errors="replace")[:300],
        )
