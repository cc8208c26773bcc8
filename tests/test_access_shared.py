"""The limits shared by all ingress replicas, where answers of the actor that counts come late or to nobody. No Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from serve_app.access.gate import Door, Gate
from serve_app.access.limiter import Limiter, Refusal
from serve_app.access.settings import AccessSettings, ClientLimits
from serve_app.access.shared import SharedLimits
from serve_app.metrics.ingress import IngressMetrics
from tests.asgi import until

ONE_AT_ONCE = ClientLimits(max_concurrent=1)


class Method:
    """A method of an actor's handle: done at once, answered when answers pass."""

    def __init__(self, call: Any, answers: asyncio.Event) -> None:
        self._call = call
        self._answers = answers

    def remote(self, *arguments: object) -> Awaitable[Any]:
        return asyncio.ensure_future(self._later(self._call(*arguments)))

    async def _later(self, answer: object) -> object:
        await self._answers.wait()
        return answer


class Actor:
    """A handle of :class:`serve_app.access.shared.LimiterActor` without Ray."""

    def __init__(self) -> None:
        self.limiter = Limiter(max_visit_s=1e6)
        self.answers = asyncio.Event()
        self.answers.set()
        self.enter = Method(self.limiter.enter, self.answers)
        self.reserve = Method(self.limiter.reserve, self.answers)
        self.leave = Method(
            lambda visit, device_s, work: self.limiter.leave(visit, device_s=device_s, work=work), self.answers
        )


def limits_of(actor: Actor, **changes: Any) -> SharedLimits:
    return SharedLimits(lambda: actor, max_visit_s=1e6, source="replica", **changes)


async def at_work(actor: Actor) -> int:
    """Requests that the actor holds to be at work."""
    await asyncio.sleep(0)
    return len(actor.limiter.at_work("a"))


def test_a_caller_that_leaves_at_the_door_is_not_held_to_be_inside() -> None:
    async def run() -> None:
        actor = Actor()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            raise AssertionError("nobody was let in")

        settings = AccessSettings(limits=ONE_AT_ONCE)
        limits = limits_of(actor)
        assert await limits.enter("first", "a", ONE_AT_ONCE) is None  # the handle is there from now on
        limits.leave("first", device_s=0.0, work=0.0)
        gate = Gate(app, Door(settings=settings, keys=None, limits=limits, metrics=IngressMetrics()))
        actor.answers.clear()
        scope = {"type": "http", "path": "/x", "headers": [], "client": ("10.0.0.1", 1234)}
        coming: asyncio.Task[None] = asyncio.ensure_future(gate(scope, None, None))  # type: ignore[arg-type]
        await until(lambda: actor.limiter.at_work("10.0.0.1"))
        coming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await coming
        assert actor.limiter.at_work("10.0.0.1") == ()

    asyncio.run(run())


def test_an_answer_that_came_too_late_holds_nobody_inside() -> None:
    async def run() -> None:
        actor, lost = Actor(), []
        limits = limits_of(actor, on_lost=lambda: lost.append(1), timeout_s=0.01)
        actor.answers.clear()
        assert await limits.enter("late", "a", ONE_AT_ONCE) is None  # counted here instead
        assert (len(lost), await at_work(actor)) == (1, 0)
        assert isinstance(await limits.enter("other", "a", ONE_AT_ONCE), Refusal)
        limits.leave("late", device_s=0.0, work=0.0)
        assert await limits.enter("other", "a", ONE_AT_ONCE) is None

    asyncio.run(run())


def test_who_entered_there_leaves_there_also_after_an_answer_that_came_too_late() -> None:
    async def run() -> None:
        actor = Actor()
        limits = limits_of(actor, timeout_s=0.5)
        assert await limits.enter("first", "a", ONE_AT_ONCE) is None
        actor.answers.clear()
        assert await limits.reserve("first", 1.0) == 0.0
        assert await at_work(actor) == 1
        limits.leave("first", device_s=0.0, work=0.0)
        assert await at_work(actor) == 0

    asyncio.run(run())
