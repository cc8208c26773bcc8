"""Laws of the limits, on a clock that the tests move: never over, never without need, never wrong about when."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serve_app.access.limiter import Limiter, Refusal
from serve_app.access.quota import DeviceQuota
from serve_app.access.rate import TokenBucket
from serve_app.access.settings import ClientLimits

STEPS_S = st.integers(0, 400).map(lambda n: n / 8)  # eighths: no rounding in sums


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@given(
    steps_s=st.lists(STEPS_S, min_size=1, max_size=80),
    per_minute=st.sampled_from([7.5, 30.0, 60.0, 240.0]),
    burst=st.integers(1, 6),
)
def test_no_window_holds_more_requests_than_burst_and_rate_allow(
    steps_s: list[float], per_minute: float, burst: int
) -> None:
    bucket, now_s, taken_s = TokenBucket(), 0.0, []
    for step_s in steps_s:
        now_s += step_s
        if bucket.wait_s(now_s, per_minute=per_minute, burst=burst) == 0.0:
            bucket.take(now_s, per_minute=per_minute)
            taken_s.append(now_s)
    for first, start_s in enumerate(taken_s):
        for last in range(first, len(taken_s)):
            assert last - first + 1 <= burst + (taken_s[last] - start_s) * per_minute / 60.0


@given(
    num_taken=st.integers(0, 12),
    burst=st.integers(1, 6),
    per_minute=st.sampled_from([7.5, 60.0, 240.0]),
    pause_s=STEPS_S,
)
def test_a_bucket_says_exactly_when_and_refuses_nobody_without_need(
    num_taken: int, burst: int, per_minute: float, pause_s: float
) -> None:
    bucket, now_s = TokenBucket(), 0.0
    for _ in range(num_taken):
        now_s += bucket.wait_s(now_s, per_minute=per_minute, burst=burst)
        bucket.take(now_s, per_minute=per_minute)
    now_s += pause_s
    wait_s = bucket.wait_s(now_s, per_minute=per_minute, burst=burst)
    assert bucket.wait_s(now_s + wait_s, per_minute=per_minute, burst=burst) == 0.0
    if wait_s:
        assert num_taken >= burst
        assert bucket.wait_s(now_s + wait_s - 1 / 64, per_minute=per_minute, burst=burst) > 0.0


@dataclasses.dataclass
class Work:
    """A request of the quota's law: when it comes, what is predicted, what it takes, how long it is at work."""

    after_s: float
    predicted_s: float
    taken_s: float
    lasts_s: float


WORK = st.builds(
    Work,
    after_s=STEPS_S,
    predicted_s=st.integers(1, 64).map(lambda n: n / 8),
    taken_s=st.integers(0, 64).map(lambda n: n / 8),
    lasts_s=STEPS_S,
)


@given(works=st.lists(WORK, min_size=1, max_size=40), device_s=st.sampled_from([1.0, 8.0, 20.0]))
def test_no_window_holds_more_device_seconds_than_the_quota_and_wrong_predictions(
    works: list[Work], device_s: float
) -> None:
    window_s = 60.0
    quota, now_s = DeviceQuota(), 0.0
    charged: list[tuple[float, float, float]] = []  # when, what, and how much of it was above the prediction
    at_work: list[tuple[float, str, Work]] = []

    def settle(until_s: float) -> None:
        for end_s, name, work in sorted((w for w in at_work if w[0] <= until_s), key=lambda w: (w[0], w[1])):
            at_work.remove((end_s, name, work))
            quota.settle(name, work.taken_s, end_s, window_s=window_s)
            charged.append((end_s, work.taken_s, max(0.0, work.taken_s - work.predicted_s)))

    for index, work in enumerate(works):
        now_s += work.after_s
        settle(now_s)
        wait_s = quota.wait_s(work.predicted_s, now_s, device_s=device_s, window_s=window_s)
        assert math.isinf(wait_s) == (work.predicted_s > device_s)
        if wait_s == 0.0:
            quota.reserve(str(index), work.predicted_s)
            at_work.append((now_s + work.lasts_s, str(index), work))
        assert quota.spent_s(now_s, window_s=window_s) + quota.promised_s <= device_s + sum(
            over for *_, over in charged
        )
    settle(math.inf)
    for end_s, _, _ in charged:
        inside = [(taken_s, over_s) for at_s, taken_s, over_s in charged if end_s - window_s < at_s <= end_s]
        assert sum(taken_s for taken_s, _ in inside) <= device_s + sum(over_s for _, over_s in inside)


@given(
    charges=st.lists(st.tuples(STEPS_S, st.integers(0, 40).map(lambda n: n / 8)), max_size=30),
    wanted_s=st.integers(0, 64).map(lambda n: n / 8),
    promised_s=st.integers(0, 16).map(lambda n: n / 8),
)
@example(charges=[(0.0, 1.25), (0.125, 0.0)], wanted_s=4.875, promised_s=2.0)  # the promise joins the charge before it
def test_a_quota_says_when_and_refuses_nobody_without_need(
    charges: list[tuple[float, float]], wanted_s: float, promised_s: float
) -> None:
    device_s, window_s = 8.0, 60.0
    quota, now_s = DeviceQuota(), 0.0
    for after_s, taken_s in charges:
        now_s += after_s
        quota.settle("", taken_s, now_s, window_s=window_s)
    quota.reserve("other", promised_s)
    wait_s = quota.wait_s(wanted_s, now_s, device_s=device_s, window_s=window_s)
    left_s = device_s - promised_s - quota.spent_s(now_s, window_s=window_s)
    if math.isinf(wait_s):
        assert wanted_s > device_s
    elif wait_s == 0.0:
        assert left_s >= wanted_s
        assert left_s > 0.0
    else:
        assert left_s < wanted_s or left_s <= 0.0
        quota.settle("other", promised_s, now_s, window_s=window_s)  # as the answer supposed
        assert quota.wait_s(wanted_s, now_s + wait_s, device_s=device_s, window_s=window_s) == 0.0


def test_a_quota_remembers_little_however_much_is_asked() -> None:
    quota = DeviceQuota()
    for n in range(100_000):
        quota.settle("", 0.001, n * 0.01, window_s=60.0)
    assert len(quota._slots) <= 62
    assert quota.spent_s(1000.0, window_s=60.0) == pytest.approx(6.0, rel=0.03)


def limiter(clock: Clock, **changes: Any) -> Limiter:
    return Limiter(max_visit_s=100.0, clock=clock, **changes)


def enter(limiter: Limiter, visit: str, client: str = "a", **limits: Any) -> Refusal | None:
    return limiter.enter(visit, client, ClientLimits(**limits))


def test_each_client_has_limits_of_its_own() -> None:
    one = limiter(Clock())
    limits: dict[str, Any] = {"requests_per_minute": 60.0, "burst": 2}
    assert [enter(one, v, **limits) is None for v in "xyz"] == [True, True, False]
    assert enter(one, "other", client="b", **limits) is None


def test_a_refusal_names_its_limit_and_counts_for_nothing() -> None:
    clock = Clock()
    one = limiter(clock)
    limits: dict[str, Any] = {"requests_per_minute": 60.0, "burst": 1, "max_concurrent": 1}
    assert enter(one, "x", **limits) is None
    for n in range(20):
        refusal = enter(one, f"refused{n}", **limits)
        assert refusal is not None
        assert refusal.limit == "concurrency"
    one.leave("x")
    refusal = enter(one, "y", **limits)
    assert refusal is not None
    assert (refusal.limit, refusal.retry_after_s) == ("rate", 1.0)
    clock.now_s += 1.0
    assert enter(one, "y", **limits) is None


@given(moves=st.lists(st.tuples(st.sampled_from(["enter", "leave", "wait"]), st.integers(0, 9)), max_size=60))
def test_never_more_requests_at_work_than_allowed(moves: list[tuple[str, int]]) -> None:
    clock = Clock()
    one = limiter(clock)
    at_work: set[str] = set()
    for move, n in moves:
        if move == "enter" and str(n) not in at_work:
            is_in = enter(one, str(n), max_concurrent=3) is None
            assert is_in == (len(at_work) < 3)
            at_work |= {str(n)} if is_in else set()
        elif move == "leave":
            one.leave(str(n))
            at_work.discard(str(n))
        elif move == "wait":
            clock.now_s += n
            if n == 9:
                clock.now_s += 100.0  # longer than any request takes: whoever is still there never left
                at_work.clear()


def test_predictions_come_from_finished_work() -> None:
    one = limiter(Clock())
    assert enter(one, "x", device_s=10.0) is None
    assert one.reserve("x", 4.0) == 0.0, "nothing is known yet"
    one.leave("x", device_s=2.0, work=4.0)
    assert enter(one, "y", device_s=10.0) is None
    assert one.reserve("y", 8.0) == 4.0
    assert enter(one, "z", device_s=10.0) is None
    refusal = one.reserve("z", 10.0)
    assert isinstance(refusal, Refusal)
    assert refusal.limit == "quota"
    assert refusal.retry_after_s == 3600.0
    impossible = one.reserve("z", 22.0)
    assert isinstance(impossible, Refusal)
    assert impossible.retry_after_s == math.inf
    assert "about 11.0 s" in impossible.message


def test_a_used_up_quota_refuses_before_the_body_is_read() -> None:
    clock = Clock()
    one = limiter(clock)
    limits: dict[str, Any] = {"device_s": 5.0, "window_s": 60.0}
    assert enter(one, "x", **limits) is None
    one.leave("x", device_s=6.0, work=1.0)
    clock.now_s += 20.0
    refusal = enter(one, "y", **limits)
    assert refusal is not None
    assert (refusal.limit, refusal.retry_after_s) == ("quota", 40.0)
    clock.now_s += 40.0
    assert enter(one, "y", **limits) is None


def test_a_request_that_is_abandoned_costs_nothing_and_teaches_nothing() -> None:
    clock = Clock()
    one = limiter(clock)
    limits: dict[str, Any] = {"device_s": 5.0, "max_concurrent": 1}
    assert enter(one, "x", **limits) is None
    one.leave("x", device_s=1.0, work=1.0)
    assert enter(one, "y", **limits) is None
    assert one.reserve("y", 4.0) == 4.0
    assert (one.at_work("a"), one.client_of("y"), one.client_of("x")) == (("y",), "a", "")
    one.abandon("y")
    assert enter(one, "z", **limits) is None
    assert one.reserve("z", 4.0) == 4.0, "neither promised nor charged"


def test_a_client_that_is_forgotten_had_nothing_to_remember() -> None:
    clock = Clock()
    one = limiter(clock)
    assert one.is_blank()
    limits: dict[str, Any] = {"requests_per_minute": 60.0, "burst": 2, "device_s": 5.0, "window_s": 30.0}
    assert enter(one, "x", **limits) is None
    assert not one.is_blank()
    clock.now_s += 5.0
    assert not one.is_blank(), "it is still at work"
    one.leave("x", device_s=1.0, work=1.0)
    clock.now_s += 29.0
    assert not one.is_blank(), "its device second counts"
    clock.now_s += 1.0
    assert one.is_blank()


def test_addresses_without_number_cost_no_memory_without_bound() -> None:
    clock = Clock()
    one = limiter(clock, max_clients=100)
    assert enter(one, "kept", client="at work", max_concurrent=1) is None
    for n in range(1000):
        assert enter(one, str(n), client=f"10.0.{n}", max_concurrent=1) is None
        one.leave(str(n))
    assert len(one._clients) <= 101
    assert enter(one, "second", client="at work", max_concurrent=1) is not None
