"""Callers that leave at any moment, whatever form of answer they wait for: the device is free at its next step."""

from __future__ import annotations

import asyncio
import collections
import random

import pytest

from engine.fake import FakeEngine
from engine.request import EngineEvent, StepProgress
from serve_app.negotiation import OFFERS
from tests.asgi import HeldSteps, Service, until, with_service
from tests.sse import Caller, events_of

NUM_LEAVING = 100
NUM_STAYING = 20
NUM_TOGETHER = 14
"""More than take part in one step, so that some leave while they wait."""


def count_steps(engine: FakeEngine) -> collections.Counter[str]:
    """Steps by the request id that the caller sent."""
    steps: collections.Counter[str] = collections.Counter()
    step = engine.step

    def counted() -> list[EngineEvent]:
        events = step()
        steps.update(event.request_id.partition(".")[0] for event in events if isinstance(event, StepProgress))
        return events

    engine.step = counted  # type: ignore[method-assign]
    return steps


async def a_picture(service: Service, held: HeldSteps) -> None:
    """The service serves."""
    caller = Caller(service=service)
    while not caller.is_complete:
        await asyncio.sleep(0.001)
        await held.step(service.stages.engine)
    await caller.ended()
    assert caller.events[-1].name == "done"


@pytest.mark.parametrize("seed", range(2))
def test_a_hundred_that_leave_cost_one_step_each_at_most_and_leave_nothing_behind(seed: int) -> None:
    held, rng = HeldSteps(), random.Random(seed)

    async def test(service: Service) -> None:
        engine = service.stages.engine
        await a_picture(service, held)
        num_tasks, steps = len(asyncio.all_tasks()), count_steps(engine)
        is_leaving = [True] * NUM_LEAVING + [False] * NUM_STAYING
        rng.shuffle(is_leaving)
        here: list[Caller] = []
        stayed: list[Caller] = []
        steps_when_left: dict[str, int] = {}

        def come() -> None:
            name, form = f"{len(is_leaving)}", rng.choice(OFFERS)
            changes = {"steps": rng.randint(1, 12), "seed": rng.randrange(9), "preview_every": rng.randrange(3)}
            caller = Caller(service=service, accept=form, changes=changes, request_id=name)
            (here if is_leaving.pop() else stayed).append(caller)

        async def leave(caller: Caller) -> None:
            here.remove(caller)
            steps_when_left[caller.request_id] = steps[caller.request_id]
            rng.choice([caller.leave, caller.break_off, caller.cut])()
            await caller.ended()

        while is_leaving or here:
            while is_leaving and len(here) < NUM_TOGETHER:
                come()
            for _ in range(rng.randrange(2)):  # some have got to the engine then, others are on their way
                await asyncio.sleep(0)
            for caller in rng.sample(here, min(len(here), rng.randrange(6))):
                await leave(caller)
            await held.step(engine)
        while not all(caller.is_complete for caller in stayed):
            await asyncio.sleep(0.001)
            await held.step(engine)
        await asyncio.gather(*(caller.ended() for caller in stayed))

        assert all(steps[name] - before <= 1 for name, before in steps_when_left.items())
        assert len(steps_when_left) == NUM_LEAVING
        assert max(steps_when_left.values()) > 3, "some left in the middle"
        assert min(steps_when_left.values()) == 0, "some left before their turn"
        assert [caller.status for caller in stayed] == [200] * NUM_STAYING
        streams = [caller for caller in stayed if caller.accept == "text/event-stream"]
        assert all(events_of(caller.received.decode())[-1].name == "done" for caller in streams)

        await until(lambda: not engine.has_work)
        stats = engine.stats()
        assert stats.is_conserved()
        assert (stats.num_waiting, stats.num_running, stats.queued_device_s) == (0, 0, 0.0)
        service.stages.replica._loop.check()
        assert len(asyncio.all_tasks()) == num_tasks
        assert await service.metric("likeness_in_flight") == 0
        await a_picture(service, held)

    with_service(test, held=held)
