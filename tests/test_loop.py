"""The asyncio bridge: many callers, one engine, nobody forgotten."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from engine.errors import EngineStoppedError, InvalidRequestError, RequestCancelledError
from engine.fake import FakeEngine, picture
from engine.loop import EngineLoop
from engine.profile import load_profile
from engine.request import EngineEvent, Failed, Finished, ImageRequest, Queued, StepProgress

PROFILE = load_profile("embedded")


def request(index: int, **changes: Any) -> ImageRequest:
    base = ImageRequest(request_id=f"r{index}", prompt="a", width_px=64, height_px=64, num_steps=3, seed=index)
    return dataclasses.replace(base, **changes)


class HeldEngine(FakeEngine):
    """Takes a step only when the test lets it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.gate = threading.Semaphore(0)
        super().__init__(PROFILE, sleep=self._wait)

    def _wait(self, _: float) -> None:
        self.entered.set()
        self.gate.acquire()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), timeout=30)

    asyncio.run(bounded())


def test_every_caller_gets_its_own_picture() -> None:
    async def scenario() -> None:
        loop = EngineLoop(FakeEngine(PROFILE, max_running=3))
        loop.start()
        requests = [request(index) for index in range(10)]
        finished = await asyncio.gather(*(loop.draw(item) for item in requests))
        for item, result in zip(requests, finished, strict=True):
            assert result.request_id == item.request_id
            drawn = PROFILE.size.drawn_size(item.width_px, item.height_px)
            assert np.array_equal(result.image, picture(item, drawn))
        loop.check()
        await loop.close()

    run(scenario)


def test_progress_reaches_the_caller_it_belongs_to() -> None:
    async def scenario() -> None:
        loop = EngineLoop(FakeEngine(PROFILE))
        loop.start()
        seen: list[list[Queued | StepProgress]] = [[], []]
        await asyncio.gather(*(loop.draw(request(index), seen[index].append) for index in range(2)))
        for index in range(2):
            queued, *steps = seen[index]
            assert isinstance(queued, Queued)
            assert [event.step for event in steps if isinstance(event, StepProgress)] == [1, 2, 3]
            assert {event.request_id for event in seen[index]} == {f"r{index}"}
        await loop.close()

    run(scenario)


def test_a_caller_that_goes_away_is_dropped_at_the_next_step() -> None:
    async def scenario() -> None:
        engine = HeldEngine()
        loop = EngineLoop(engine)
        loop.start()
        gone = asyncio.create_task(loop.draw(request(0, num_steps=50)))
        stays = asyncio.create_task(loop.draw(request(1)))
        await asyncio.to_thread(engine.entered.wait)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        engine.gate.release(3 + 1)
        await stays
        stats = engine.stats()
        assert (stats.num_cancelled, stats.num_finished) == (1, 1)
        assert stats.num_sample_steps <= 1 + 3 + 1, "one step was under way, and none after it"
        loop.check()
        await loop.close()

    run(scenario)


class CountingEngine(FakeEngine):
    """Counts the steps that each request takes after it was cancelled."""

    def __init__(self) -> None:
        self.cancelled: set[str] = set()
        self.num_steps_after: Counter[str] = Counter()
        super().__init__(PROFILE, step_s=0.001, max_running=4)

    def cancel(self, request_id: str) -> bool:
        is_here = super().cancel(request_id)
        if is_here:
            self.cancelled.add(request_id)
        return is_here

    def step(self) -> list[EngineEvent]:
        events = super().step()
        steps = [event.request_id for event in events if isinstance(event, StepProgress)]
        self.num_steps_after.update(self.cancelled.intersection(steps))
        return events


def test_a_hundred_callers_that_leave_at_random_cost_one_further_step_each_at_most() -> None:
    async def scenario() -> None:
        rng = random.Random(0)
        engine = CountingEngine()
        loop = EngineLoop(engine)
        loop.start()
        drawings: list[asyncio.Task[Finished]] = []

        def leave_after(index: int, num_events: int) -> Callable[[Queued | StepProgress], None]:
            seen: list[Queued | StepProgress] = []

            def hear(event: Queued | StepProgress) -> None:
                seen.append(event)
                if len(seen) == num_events:
                    drawings[index].cancel()

            return hear

        for index in range(100):
            hear = leave_after(index, rng.randint(1, 18))
            drawings.append(asyncio.create_task(loop.draw(request(index, num_steps=20), hear)))
        results = await asyncio.gather(*drawings, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        await loop.draw(request(1000))
        assert set(engine.num_steps_after.values()) <= {1}
        stats = engine.stats()
        assert (stats.num_cancelled, stats.num_finished) == (100, 1)
        assert (stats.num_waiting, stats.num_running, stats.queued_device_s) == (0, 0, 0.0)
        loop.check()
        await loop.close()

    run(scenario)


def test_the_event_loop_stays_free_during_a_step() -> None:
    async def scenario() -> None:
        engine = HeldEngine()
        loop = EngineLoop(engine)
        loop.start()
        drawing = asyncio.create_task(loop.draw(request(0)))
        await asyncio.to_thread(engine.entered.wait)
        loop.check()  # answered while the step is held
        engine.gate.release(3)
        await drawing
        await loop.close()

    run(scenario)


def test_a_refused_request_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        engine = FakeEngine(PROFILE)
        loop = EngineLoop(engine)
        loop.start()
        with pytest.raises(InvalidRequestError):
            await loop.draw(request(0, num_steps=1000))
        assert engine.stats().num_submitted == 0
        await loop.draw(request(0))
        await loop.close()

    run(scenario)


class BrokenEngine(FakeEngine):
    """Fails in its first step."""

    def step(self) -> list[EngineEvent]:
        raise RuntimeError("secret detail of the device")


def test_a_broken_engine_fails_everyone_now_and_later() -> None:
    async def scenario() -> None:
        loop = EngineLoop(BrokenEngine(PROFILE))
        loop.start()
        for index in range(2):
            with pytest.raises(EngineStoppedError) as caught:
                await loop.draw(request(index))
            assert "secret" not in str(caught.value)
        with pytest.raises(EngineStoppedError):
            loop.check()
        await loop.close()

    run(scenario)


def test_closing_waits_for_the_step_under_way_and_ends_everyone() -> None:
    async def scenario() -> None:
        engine = HeldEngine()
        loop = EngineLoop(engine)
        loop.start()
        drawing = asyncio.create_task(loop.draw(request(0)))
        await asyncio.to_thread(engine.entered.wait)
        closing = asyncio.create_task(loop.close())
        await asyncio.sleep(0.05)
        assert not closing.done(), "the device is not pulled from under a step"
        engine.gate.release(1)
        await closing
        with pytest.raises(EngineStoppedError):
            await drawing
        with pytest.raises(EngineStoppedError):
            loop.check()

    run(scenario)


def test_a_failure_of_one_request_is_that_caller_s() -> None:
    class Picky(FakeEngine):
        def step(self) -> list[EngineEvent]:
            events = super().step()
            if self.cancel("r1"):
                return [*events, *(e for e in super().step() if isinstance(e, Failed))]
            return events

    async def scenario() -> None:
        loop = EngineLoop(Picky(PROFILE))
        loop.start()
        results = await asyncio.gather(*(loop.draw(request(index)) for index in range(3)), return_exceptions=True)
        assert [isinstance(result, RequestCancelledError) for result in results] == [False, True, False]
        await loop.close()

    run(scenario)


def test_a_step_that_hangs_is_given_up_and_everybody_is_told() -> None:
    async def scenario() -> None:
        engine, told = HeldEngine(), []
        loop = EngineLoop(engine, max_step_s=0.05, on_broken=lambda: told.append("broken"))
        loop.start()
        waiting = [asyncio.ensure_future(loop.draw(request(index))) for index in range(3)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["the engine hung; see the replica's log"] * 3
        assert told == ["broken"]
        with pytest.raises(EngineStoppedError, match="hung"):
            loop.check()
        with pytest.raises(EngineStoppedError, match="hung"):
            await loop.draw(request(9))
        engine.gate.release(10)  # or its thread would outlive the test

    run(scenario)


def test_long_steps_are_no_hang_while_each_ends_in_time() -> None:
    async def scenario() -> None:
        engine = HeldEngine()
        loop = EngineLoop(engine, max_step_s=20.0)
        loop.start()
        drawing = asyncio.ensure_future(loop.draw(request(0)))
        for _ in range(3):
            await asyncio.sleep(0.02)
            engine.gate.release()
        assert (await drawing).request_id == "r0"
        loop.check()
        await loop.close()

    run(scenario)
