"""Calls that block, made by an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class OneThread(Generic[T]):
    """A call that blocks, in a thread: in one at most, however many wait for it and however often they give up.

    A thread can't be cancelled. Were each asker given another, a call that hangs would take all threads of the pool
    that every other such call of the process needs.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._running: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        """The outcome of the call that runs, or of one that begins now."""
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(asyncio.to_thread(self._call))
            self._running.add_done_callback(_look_at)
        return await asyncio.shield(self._running)


def _look_at(done: asyncio.Future[T]) -> None:
    """Where all have given up nobody else does, and asyncio would complain."""
    if not done.cancelled():
        done.exception()
