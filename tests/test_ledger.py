"""Laws of taking in, refusing, ending and counting, on an engine whose time is simulated."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.errors import (
    DeadlineExceededError,
    EngineBusyError,
    EngineError,
    EngineStoppedError,
    InvalidRequestError,
    RequestCancelledError,
)
from engine.fake import FakeEngine, picture
from engine.profile import load_profile
from engine.request import EngineEvent, Failed, Finished, ImageRequest, StepProgress
from engine.scheduler import PolicyName

PROFILE = load_profile("embedded")
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
TOKENS_64PX = PROFILE.t5.max_tokens + 16
STEP_S = 0.1


class Time:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def engine_in(time: Time, **changes: Any) -> FakeEngine:
    """A step of one small picture takes 0.1 s, each further row a little more."""
    values: dict[str, Any] = {"step_s": 0.084, "token_s": 0.0002, **changes}
    return FakeEngine(PROFILE, sleep=time.sleep, clock=time.clock, **values)


def request(name: str, **changes: Any) -> ImageRequest:
    base = ImageRequest(request_id=name, prompt="a", width_px=64, height_px=64, num_steps=10)
    return dataclasses.replace(base, **changes)


def run(engine: FakeEngine) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    while engine.has_work:
        events += engine.step()
    return events


def work_for(engine: FakeEngine, time: Time, seconds: float) -> list[EngineEvent]:
    until_s = time.now_s + seconds
    events: list[EngineEvent] = []
    while engine.has_work and time.now_s < until_s:
        events += engine.step()
    time.now_s = max(time.now_s, until_s)
    return events


def error_of(events: list[EngineEvent], name: str) -> Exception | None:
    ends = [event for event in events if event.request_id == name and isinstance(event, Finished | Failed)]
    assert len(ends) == 1
    return ends[0].error if isinstance(ends[0], Failed) else None


# -- admission -------------------------------------------------------------------------------------------------------


def test_a_request_is_told_its_wait_and_its_price() -> None:
    time = Time()
    engine = engine_in(time)
    first = engine.submit(request("first"))
    longer = engine.submit(request("longer", num_steps=30))
    assert first.predicted_wait_s == 0.0
    assert first.predicted_device_s == pytest.approx(1.0)
    assert longer.predicted_wait_s == pytest.approx(1.0)
    assert longer.predicted_device_s == pytest.approx(3.0)
    assert engine.stats().queued_device_s == pytest.approx(4.0)
    assert engine.submit(request("shorter", num_steps=5)).predicted_wait_s == 0.0


@pytest.mark.parametrize("policy", POLICIES)
def test_the_queue_is_bounded_in_seconds_and_says_when_there_is_room(policy: PolicyName) -> None:
    time = Time()
    engine = engine_in(time, policy=policy, max_queued_device_s=5.0)
    for index in range(5):
        engine.submit(request(f"r{index}"))
    with pytest.raises(EngineBusyError, match=r"about 5 s of work wait here already; try again in 3\.0 s") as caught:
        engine.submit(request("late", num_steps=30))
    assert caught.value.retry_after_s == pytest.approx(3.0)
    work_for(engine, time, caught.value.retry_after_s)
    engine.submit(request("late", num_steps=30))
    stats = engine.stats()
    assert (stats.num_submitted, stats.num_refused) == (6, 1)
    assert stats.is_conserved()


def test_a_request_larger_than_the_whole_queue_is_taken_where_nobody_is() -> None:
    engine = engine_in(Time(), max_queued_device_s=0.5)
    engine.submit(request("huge", num_steps=100))
    with pytest.raises(EngineBusyError) as caught:
        engine.submit(request("another", num_steps=100))
    assert caught.value.retry_after_s == pytest.approx(10.0), "when all is gone, not when it is below nothing"


def test_waiting_requests_are_bounded_in_number_too() -> None:
    engine = engine_in(Time(), max_waiting=2)
    engine.submit(request("a"))
    engine.submit(request("b"))
    with pytest.raises(EngineBusyError, match="2 requests wait here already") as caught:
        engine.submit(request("c"))
    assert caught.value.retry_after_s > 0.0


def test_who_would_be_too_late_is_refused_at_once() -> None:
    time = Time()
    engine = engine_in(time, policy="first_come")
    engine.submit(request("a", num_steps=40))
    with pytest.raises(EngineBusyError, match=r"within max_wait_s \(5\); try again in 0\.5 s") as caught:
        engine.submit(request("b", max_wait_s=5.0))
    work_for(engine, time, caught.value.retry_after_s)
    engine.submit(request("b", max_wait_s=5.0))
    assert error_of(run(engine), "b") is None


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None)
@given(
    here=st.lists(st.tuples(st.integers(1, 40), st.sampled_from((None, 4.0, 8.0, 30.0))), min_size=1, max_size=12),
    num_steps=st.integers(1, 30),
    max_wait_s=st.sampled_from((None, 4.0, 8.0, 30.0)),
)
def test_who_comes_back_when_told_is_taken(
    policy: PolicyName, here: list[tuple[int, float | None]], num_steps: int, max_wait_s: float | None
) -> None:
    """Whatever it was refused for, as long as nobody else comes, and the device works off one request at a time."""
    time = Time()
    engine = engine_in(time, policy=policy, max_running=1, max_waiting=8, max_queued_device_s=9.0)
    for index, (its_steps, its_wait_s) in enumerate(here):
        with contextlib.suppress(EngineBusyError, DeadlineExceededError):
            engine.submit(request(f"r{index}", num_steps=its_steps, max_wait_s=its_wait_s))
    new = request("new", num_steps=num_steps, max_wait_s=max_wait_s)
    try:
        engine.submit(new)
    except DeadlineExceededError:
        return
    except EngineBusyError as error:
        work_for(engine, time, error.retry_after_s + STEP_S)  # a step under way counts as work until it ends
        engine.submit(new)


def test_who_can_overtake_is_not_refused() -> None:
    engine = engine_in(Time())
    engine.submit(request("long", num_steps=100))
    engine.submit(request("short", max_wait_s=1.2))
    assert error_of(run(engine), "short") is None


def test_a_wait_shorter_than_the_work_alone_is_no_question_of_when() -> None:
    engine = engine_in(Time())
    with pytest.raises(DeadlineExceededError, match=r"takes about 1\.0 s here, more than max_wait_s \(0\.5\)"):
        engine.submit(request("a", max_wait_s=0.5))
    assert engine.stats().num_refused == 1
    assert not engine.has_work


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.0, 3.0), st.integers(1, 40), st.none() | st.floats(0.1, 20.0), st.integers(0, 2)),
        min_size=1,
        max_size=12,
    )
)
def test_an_accepted_deadline_is_kept(arrivals: list[tuple[float, int, float | None, int]]) -> None:
    time = Time()
    engine = engine_in(time)
    events: list[EngineEvent] = []
    for index, (gap_s, num_steps, max_wait_s, priority) in enumerate(arrivals):
        events += work_for(engine, time, gap_s)
        try:
            engine.submit(request(f"r{index}", num_steps=num_steps, max_wait_s=max_wait_s, priority=priority))
        except (EngineBusyError, DeadlineExceededError):
            continue
    events += run(engine)
    assert not [event for event in events if isinstance(event, Failed)]


# -- ends ------------------------------------------------------------------------------------------------------------


def test_a_deadline_that_passes_ends_the_request_before_it_takes_another_step() -> None:
    time = Time()
    engine = engine_in(time)
    engine.submit(request("a", max_wait_s=2.0))
    engine.submit(request("b"))
    for _ in range(4):
        engine.step()
    time.now_s += 5.0  # a stall that nobody could predict
    events = engine.step()
    assert isinstance(events[0], Failed)
    assert isinstance(events[0].error, DeadlineExceededError)
    assert "max_wait_s (2)" in str(events[0].error)
    assert {event.request_id for event in events[1:]} <= {"b"}
    run(engine)
    stats = engine.stats()
    assert (stats.num_expired, stats.num_finished, stats.num_wasted_steps) == (1, 1, 4)
    assert stats.is_conserved()


def test_a_cancelled_id_may_come_again_at_once() -> None:
    engine = engine_in(Time())
    engine.submit(request("a", num_steps=1))
    engine.step()
    engine.cancel("a")
    engine.submit(request("a", num_steps=1))
    assert error_of(run(engine), "a") is None


def test_shares_of_steps_add_up_and_rows_of_guidance_count() -> None:
    engine = engine_in(Time(), step_s=0.0, policy="static_batches")
    engine.submit(request("plain"))
    engine.submit(request("guided", cfg=3.0))
    finished = [event for event in run(engine) if isinstance(event, Finished)]
    charged = {event.request_id: event.device_s for event in finished}
    stats = engine.stats()
    assert sum(charged.values()) == pytest.approx(stats.device_s) == pytest.approx(stats.denoise_s)
    assert charged["guided"] == pytest.approx(2 * charged["plain"])
    assert stats.num_step_tokens == 10 * 3 * TOKENS_64PX
    assert stats.cost_model_error == pytest.approx(0.0, abs=1e-9)


def test_previews_come_with_the_steps_that_were_asked_for() -> None:
    engine = engine_in(Time())
    engine.submit(request("a", preview_every=4))
    engine.submit(request("b"))
    steps = [event for event in run(engine) if isinstance(event, StepProgress)]
    shown = [(event.request_id, event.step) for event in steps if event.preview is not None]
    assert shown == [("a", 4), ("a", 8)]
    assert all(event.preview.shape == (8, 8, 3) for event in steps if event.preview is not None)


# -- anything, in any order ------------------------------------------------------------------------------------------


class AnyLife(RuleBasedStateMachine):
    """Requests come, are cancelled, time passes, steps are taken, and at last everything ends: nobody is lost."""

    @initialize(policy=st.sampled_from(POLICIES), max_running=st.integers(1, 4))
    def begin(self, policy: PolicyName, max_running: int) -> None:
        self.time = Time()
        self.engine = engine_in(
            self.time, policy=policy, max_running=max_running, max_waiting=6, max_queued_device_s=20
        )
        self.requests: dict[str, ImageRequest] = {}
        self.ended: dict[str, Exception | None] = {}
        self.num_steps: dict[str, int] = {}
        self.deadline_s: dict[str, float] = {}
        self.cancelled: set[str] = set()
        self.is_closed = False

    @rule(
        num_steps=st.integers(1, 12),
        side_px=st.sampled_from((64, 128, 512)),
        cfg=st.sampled_from((1.0, 3.0)),
        max_wait_s=st.none() | st.floats(0.5, 30.0),
        priority=st.integers(0, 2),
    )
    def submit(self, num_steps: int, side_px: int, cfg: float, max_wait_s: float | None, priority: int) -> None:
        name = f"r{len(self.requests)}"
        new = request(
            name,
            num_steps=num_steps,
            width_px=side_px,
            height_px=side_px,
            cfg=cfg,
            max_wait_s=max_wait_s,
            priority=priority,
        )
        try:
            queued = self.engine.submit(new)
        except EngineStoppedError:
            assert self.is_closed
            return
        except (EngineBusyError, DeadlineExceededError) as error:
            assert not isinstance(error, EngineBusyError) or 0.0 < error.retry_after_s < math.inf
            return
        assert queued.predicted_wait_s >= 0.0
        assert queued.predicted_device_s > 0.0
        self.requests[name] = new
        self.deadline_s[name] = math.inf if max_wait_s is None else self.time.now_s + max_wait_s
        self.num_steps[name] = 0

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.requests)))
        assert self.engine.cancel(name) == (name not in self.ended)
        if name not in self.ended:
            self.cancelled.add(name)

    @precondition(lambda self: self.requests)
    @rule()
    def submit_the_same_again(self) -> None:
        name = next(iter(self.requests))
        if name not in self.ended and not self.is_closed:
            with pytest.raises(InvalidRequestError, match="already in the engine"):
                self.engine.submit(self.requests[name])

    @rule(seconds=st.floats(0.0, 4.0))
    def time_passes(self, seconds: float) -> None:
        self.time.now_s += seconds

    @rule()
    def step(self) -> None:
        begun_s = self.time.now_s
        has_ended = set(self.ended)
        for event in self.engine.step():
            name = event.request_id
            assert name not in has_ended, "nothing is heard of the dead"
            match event:
                case StepProgress():
                    self.num_steps[name] += 1
                    assert event.step == self.num_steps[name]
                    assert name not in self.cancelled
                    assert not self.is_closed
                    assert begun_s < self.deadline_s[name]
                case Finished():
                    self.ended[name] = None
                    wanted = self.requests[name]
                    drawn = PROFILE.size.drawn_size(wanted.width_px, wanted.height_px)
                    assert (event.image == picture(wanted, drawn)).all()
                    assert self.num_steps[name] == wanted.num_steps
                case Failed():
                    assert isinstance(event.error, EngineError)
                    self.ended[name] = event.error
                    assert isinstance(event.error, RequestCancelledError) <= (name in self.cancelled)
        assert self.cancelled <= self.ended.keys(), "cancelling takes effect at the next step"

    @precondition(lambda self: len(self.requests) > 8)
    @rule()
    def close(self) -> None:
        self.engine.close()
        self.is_closed = True

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "engine"):
            return
        stats = self.engine.stats()
        assert stats.is_conserved()
        assert stats.num_submitted == len(self.requests)
        here = len(self.requests) - len(self.ended)
        assert stats.num_waiting + stats.num_running == here
        assert (stats.queued_device_s > 0.0) == (here > 0) == self.engine.has_work
        outcomes = list(self.ended.values())
        assert stats.num_finished == outcomes.count(None)
        assert stats.num_cancelled == sum(isinstance(error, RequestCancelledError) for error in outcomes)
        assert stats.num_expired == sum(isinstance(error, DeadlineExceededError) for error in outcomes)
        assert stats.num_sample_steps == sum(self.num_steps.values())
        wasted = [self.num_steps[name] for name, error in self.ended.items() if error is not None]
        assert stats.num_wasted_steps == sum(wasted)

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            while self.engine.has_work:
                self.step()
            assert self.ended.keys() == self.requests.keys()
            assert self.engine.stats().queued_device_s == 0.0


AnyLife.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyLife = AnyLife.TestCase
