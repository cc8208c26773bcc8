"""Ten times more than the device can draw: what is taken is drawn in time, what is not is told when to come back.

Counted on the engine's clock, which only steps move, so that nothing depends on how fast this machine is.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random

import httpx

from tests.asgi import HeldSteps, Service, until, with_service

STEP_S = 100.0
"""Of the engine's clock. The time that passes here is nothing beside it."""

MAX_WAIT_S = 20.5 * STEP_S
NUM_STEPS = (2, 4, 8)
MEAN_WORK_S = STEP_S * sum(NUM_STEPS) / len(NUM_STEPS)
OVERLOAD = 10.0
NUM_REQUESTS = 250

# A request takes its step alone: the device is full with one, as an H100 is with 1024×1024 pixels.
ENGINE = {"kind": "fake", "step_s": STEP_S, "max_running": 1, "max_queued_device_s": 1e9}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One request's answer, and how long it took on the engine's clock."""

    num_steps: int
    response: httpx.Response
    took_s: float


async def ask(service: Service, held: HeldSteps, num_steps: int) -> Outcome:
    came_s = held.clock()
    response = await service.draw(steps=num_steps, max_wait_s=MAX_WAIT_S)
    return Outcome(num_steps=num_steps, response=response, took_s=held.clock() - came_s)


def test_ten_times_the_load_loses_less_than_a_tenth_of_the_device() -> None:
    held, rng = HeldSteps(), random.Random(7)

    async def test(service: Service) -> None:
        engine = service.stages.engine
        asked: list[asyncio.Task[Outcome]] = []
        next_s = 0.0
        while len(asked) < NUM_REQUESTS:
            while next_s <= held.clock() and len(asked) < NUM_REQUESTS:
                asked.append(asyncio.create_task(ask(service, held, rng.choice(NUM_STEPS))))
                next_s += rng.expovariate(OVERLOAD / MEAN_WORK_S)
                # One by one, for the same order in every run.
                await until(lambda: engine.stats().num_submitted + engine.stats().num_refused == len(asked))
            await held.step(engine)
        before_s = held.clock()
        while not all(task.done() for task in asked):
            await asyncio.sleep(0.001)
            await held.step(engine)
        outcomes = [await task for task in asked]

        drawn = [outcome for outcome in outcomes if outcome.response.status_code == 200]
        refused = [outcome.response for outcome in outcomes if outcome.response.status_code == 429]
        assert len(drawn) + len(refused) == NUM_REQUESTS
        assert len(refused) > NUM_REQUESTS / 2, "it was an overload"
        assert before_s > 10 * MAX_WAIT_S / 4, "it lasted"
        useful_s = sum(outcome.num_steps * STEP_S for outcome in drawn if outcome.took_s <= MAX_WAIT_S)
        assert useful_s >= 0.9 * held.clock()
        assert engine.stats().num_wasted_steps == 0
        for response in refused:
            answer = response.json()
            assert answer["type"] == "EngineBusyError"
            assert int(response.headers["retry-after"]) == math.ceil(answer["details"]["retry_after_s"]) >= 1

    with_service(test, held=held, engine=ENGINE)


def test_who_comes_back_when_told_to_is_taken() -> None:
    held = HeldSteps()

    async def test(service: Service) -> None:
        engine = service.stages.engine
        crowd: list[asyncio.Task[Outcome]] = []
        while not engine.stats().num_refused:
            crowd.append(asyncio.create_task(ask(service, held, 4)))
            await until(lambda: engine.stats().num_submitted + engine.stats().num_refused == len(crowd))
        assert len(crowd) > 2
        refused = (await crowd.pop()).response
        assert refused.status_code == 429
        again_s = held.clock() + int(refused.headers["retry-after"])
        while held.clock() < again_s:
            await held.step(engine)
        num_submitted = engine.stats().num_submitted
        crowd.append(asyncio.create_task(ask(service, held, 4)))
        await until(lambda: engine.stats().num_submitted > num_submitted)
        while not all(task.done() for task in crowd):
            await asyncio.sleep(0.001)
            await held.step(engine)
        for task in crowd:
            assert (await task).response.status_code == 200
            assert (await task).took_s <= MAX_WAIT_S

    with_service(test, held=held, engine=ENGINE)
