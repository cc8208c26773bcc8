"""A request that a busy replica refuses is offered to one more, as long as that is seldom.

Serve's router takes the shorter of two queues, counted in requests; a replica refuses by the seconds of work it holds.
So a refusal often means the wrong choice of two, and another draw finds room: ``benchmarks/second_try.py`` has the
numbers. When all are full a second try only doubles the calls, hence the budget, as Finagle's retry budgets have it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from engine.errors import EngineBusyError

T = TypeVar("T")

SHARE: Final = 0.2
"""Second tries for each request that is taken. At full load one in ten is refused; ten times that leaves it at 2 %."""

MAX_SAVED: Final = 10.0
"""Second tries that a quiet time saves up."""


class SecondTry:
    """Runs calls, and those that a replica was too busy for once more where the budget allows it."""

    def __init__(self) -> None:
        self._saved = MAX_SAVED

    async def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call brings, at the first or the second try.

        Raises:
            EngineBusyError: of the two refusals, the one that is over sooner.
        """
        try:
            return self._taken(await call())
        except EngineBusyError as error:
            if self._saved < 1.0:
                raise
            self._saved -= 1.0
            first = error
        try:
            return self._taken(await call())
        except EngineBusyError as second:
            raise min(first, second, key=lambda error: error.retry_after_s) from None

    def _taken(self, result: T) -> T:
        self._saved = min(MAX_SAVED, self._saved + SHARE)
        return result
