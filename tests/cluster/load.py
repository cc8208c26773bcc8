"""Callers that keep asking, and what became of every request of theirs."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from tests.asgi import URL, body

SIDE_PX = 256
NUM_SEEDS = 4


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One request: what was asked for, when, and what came of it.

    Attributes:
        asked: which of the load's bodies it was.
        status: 0 stands for a connection that broke.
        picture: the file that came; empty where ``error`` says what came instead.
    """

    asked: int
    started_s: float
    ended_s: float
    status: int
    picture: bytes = b""
    error: str = ""


def picture_body(**changes: Any) -> dict[str, Any]:
    """A request of one second: 20 steps of 50 ms, for everybody in the batch together."""
    return body(**({"width": SIDE_PX, "height": SIDE_PX, "steps": 20} | changes))


class Load:
    """Callers of one service, each with one request at a time, until they are told to stop.

    Args:
        bodies: what they ask for: caller ``n`` for ``bodies[n]``, and more callers from the beginning again.

    Attributes:
        outcomes: of requests that have ended.
    """

    def __init__(self, url: str, bodies: Sequence[dict[str, Any]] = ()) -> None:
        self._url = url
        self._bodies = bodies or [picture_body(seed=seed) for seed in range(NUM_SEEDS)]
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

    def answered_since(self, moment_s: float) -> set[int]:
        """Bodies that gave a picture, asked for after a moment."""
        return {outcome.asked for outcome in self.outcomes if outcome.started_s > moment_s and outcome.status == 200}

    def pictures(self) -> dict[int, set[bytes]]:
        """The different pictures that each body gave."""
        found: dict[int, set[bytes]] = collections.defaultdict(set)
        for outcome in self.outcomes:
            if outcome.status == 200:
                found[outcome.asked].add(outcome.picture)
        return found

    @contextlib.contextmanager
    def running(self, num_callers: int) -> Iterator[Load]:
        """Callers around a block; every request that was sent has ended when it is left."""
        threads = [threading.Thread(target=self._call, args=(n % len(self._bodies),)) for n in range(num_callers)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join()

    def _call(self, asked: int) -> None:
        headers = {"Accept": "image/png"}  # what can be compared pixel by pixel
        with httpx.Client(base_url=self._url, headers=headers, timeout=300.0, trust_env=False) as client:
            while not self._stopping.is_set():
                outcome = self._one(client, asked)
                with self._lock:
                    self.outcomes.append(outcome)
                if outcome.status != 200:
                    time.sleep(0.2)  # as any client would

    def _one(self, client: httpx.Client, asked: int) -> Outcome:
        started_s = time.monotonic()
        with self._lock:
            self._num_in_flight += 1
        picture, error = b"", ""
        try:
            response = client.post(URL, json=self._bodies[asked])
            status = response.status_code
            if status == 200:
                picture = response.content
            else:
                error = response.text[:300]
        except httpx.HTTPError as broken:
            status, error = 0, repr(broken)
        finally:
            with self._lock:
                self._num_in_flight -= 1
        return Outcome(
            asked=asked, started_s=started_s, ended_s=time.monotonic(), status=status, picture=picture, error=error
        )
