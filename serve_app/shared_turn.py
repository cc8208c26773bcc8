"""One turn for all ingress replicas of an application: while one of them has it, no other does.

A key in Ray's control store, which holds its owner's name. The store makes a key only where there is none, so that of
many who try, one succeeds; and it knows who has died, so that nobody has to keep a turn alive. The key of one who died
stays, and from then on the turn is another key, named after the dead: nobody ever deletes a key that is not their own,
so nobody can take away, too late, what somebody else has taken. Where the store can't be reached, each replica has a
turn of its own.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self

from ray._private import state  # what ray.util.state gives would need the dashboard
from ray.exceptions import RayError
from ray.experimental import internal_kv

from serve_app.head_actor import NAMESPACE

logger = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.25
"""Turns are for drawings, which take seconds."""


class SharedTurn:
    """An asynchronous context manager that may be entered by many tasks; one at a time goes on.

    Args:
        name: who shares a turn, shares its name.
        owner: id of the actor that this is; empty where it is none, and can't be missed.
    """

    def __init__(self, name: str, *, owner: str) -> None:
        self._name = f"turn-{name}"
        self._key = self._name  # that of a dead owner is passed by for good
        self._owner = owner.encode()
        self._here = asyncio.Lock()
        # Calls of the store block. One thread keeps their order: who gives up while taking gives back after it.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="turn")

    async def __aenter__(self) -> Self:
        await self._here.acquire()
        try:
            while not await asyncio.get_running_loop().run_in_executor(self._thread, self._take):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_EVERY_S)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._thread.submit(self._give_back)
        self._here.release()

    def _take(self) -> bool:
        try:
            # True where there was one already.
            while internal_kv._internal_kv_put(self._key, self._owner, overwrite=False, namespace=NAMESPACE):
                owner: bytes | None = internal_kv._internal_kv_get(self._key, namespace=NAMESPACE)
                if not owner or state.actors(owner.decode()).get("State") == "ALIVE":
                    return owner == self._owner  # given up in the middle of taking it
                logger.warning("an ingress replica died in its turn; the next one goes on")
                self._key = f"{self._name}-after-{owner.decode()}"
            return True
        except RayError:
            logger.warning("Ray's control store can't be reached; this ingress replica has a turn of its own")
            return True

    def _give_back(self) -> None:
        try:
            if internal_kv._internal_kv_get(self._key, namespace=NAMESPACE) == self._owner:
                internal_kv._internal_kv_del(self._key, namespace=NAMESPACE)
        except RayError:
            logger.warning("Ray's control store can't be reached; a turn is given back when this replica ends")
