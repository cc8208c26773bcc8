"""Requests whose replicas die: how often they are run again, and which are not run any more. No Ray.

A replica takes everything it was working on with it, so most requests that lose their replica did nothing to it. But
some request may have been the cause, and whoever sent it will send it again. Three things tell them apart:

* Deaths are counted by what is asked for, not by request: sending the same again does not begin anew.
* Runs that were at work at the same time count one death, not one each: many copies of an innocent request may have
  been beside the guilty one.
* Before its last run a request waits for a turn, so that it is the only one under suspicion that runs. Company that
  was guilty before then dies alone, and the innocent live.

The turn is one for all ingress replicas: who is guilty came through another one as likely as not. Deaths are counted
by each for itself; with several, what kills replicas may do so as often in each.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from engine.request import ImageRequest
from serve_app.errors import QuarantinedError

MAX_DEATHS: Final = 3
"""One run and two more. The first death says nothing about any one of a batch. Nor does the second: all of the batch
were run again at once, probably together. To run each apart after the first death would tell the guilty one death
earlier, and make everybody whose replica had an accident wait for all others who were on it."""

QUARANTINE_S: Final = 300.0
"""After the last death. Long enough for the replicas to be replaced, short enough if it was none of its fault."""

MAX_SUSPECTS: Final = 10_000


class ReplicaDiedError(Exception):
    """The replica, or its engine, ended under a run; another may do better. Never leaves the backend."""


@dataclasses.dataclass(kw_only=True, slots=True)
class _Suspect:
    num_deaths: int
    until_s: float


class Quarantine:
    """Counts deaths by fingerprint: any word for what is asked for, without who asks or when.

    Args:
        clock: seconds, monotonic.
        turn: what one at a time can enter, of all quarantines that know the same replicas.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        turn: contextlib.AbstractAsyncContextManager[object] | None = None,
    ) -> None:
        self._clock = clock
        self._suspects: dict[str, _Suspect] = {}  # in the order of their last deaths
        self._turn = asyncio.Lock() if turn is None else turn

    @contextlib.asynccontextmanager
    async def run(self, fingerprint: str) -> AsyncIterator[None]:
        """Around one run. One that ends with :class:`ReplicaDiedError` is a death; one that succeeds, an acquittal.

        Raises:
            QuarantinedError: it is not run any more; as well in place of the error that makes it so.
        """
        async with contextlib.AsyncExitStack() as stack:
            if self._num_deaths(fingerprint) == MAX_DEATHS - 1:
                await stack.enter_async_context(self._turn)
            num_deaths = self._num_deaths(fingerprint)  # others may have died while this one waited
            if num_deaths >= MAX_DEATHS:
                raise self._refusal(fingerprint)
            try:
                yield
            except ReplicaDiedError:
                if self._died(fingerprint, num_deaths + 1) >= MAX_DEATHS:
                    raise self._refusal(fingerprint) from None
                raise
            self._suspects.pop(fingerprint, None)

    def _num_deaths(self, fingerprint: str) -> int:
        self._release()
        suspect = self._suspects.get(fingerprint)
        return 0 if suspect is None else suspect.num_deaths

    def _died(self, fingerprint: str, num_deaths: int) -> int:
        """Note a death that is its ``num_deaths``-th, or one of several at that time."""
        num_deaths = max(num_deaths, self._num_deaths(fingerprint))
        self._suspects.pop(fingerprint, None)
        self._suspects[fingerprint] = _Suspect(num_deaths=num_deaths, until_s=self._clock() + QUARANTINE_S)
        return num_deaths

    def _release(self) -> None:
        now_s = self._clock()
        while self._suspects:
            oldest = next(iter(self._suspects))
            if len(self._suspects) <= MAX_SUSPECTS and self._suspects[oldest].until_s > now_s:
                break
            del self._suspects[oldest]

    def _refusal(self, fingerprint: str) -> QuarantinedError:
        left_s = self._suspects[fingerprint].until_s - self._clock()
        return QuarantinedError(
            f"{MAX_DEATHS} replicas ended while they worked on this request, so it is not run again for the next "
            f"{max(1, round(left_s / 60.0))} minutes; change it, or tell the service's operator the request id"
        )


def drawing_of(request: ImageRequest) -> str:
    """The fingerprint of a picture: all that is asked for but the seed, which a retry may leave to chance, and what
    does not change the picture."""
    reference = "" if request.reference is None else request.reference.key
    asked = dataclasses.replace(
        request, request_id="", reference=None, seed=0, max_wait_s=None, priority=1, preview_every=0
    )
    return _hash(f"{asked!r} {reference}".encode())


def picture_of(data: bytes) -> str:
    """The fingerprint of a reference picture."""
    return _hash(data)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
