"""Laws of the scaling decision: bounds, up at once, down slowly, no flapping, sleep, floors, work and not requests."""

from __future__ import annotations

import dataclasses
import datetime
import random
import subprocess
import sys
import zoneinfo
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.scaling.decision import Decision, Scaler, Snapshot
from serve_app.scaling.rules import ScalingRules, WarmHours
from tests.simulated_fleet import START, Arrival, Run, simulate

RULES = ScalingRules(may_owe_s=10.0, cold_start_s=5.0, hold_s=60.0, idle_to_zero_s=120.0)


def snapshot(now_s: float = 0.0, **changes: Any) -> Snapshot:
    """One replica with nothing to do."""
    fields: dict[str, Any] = {"num_running": 1, "num_target": 1, "min_replicas": 0, "max_replicas": 100}
    fields |= {"owed_s": 0.0, "busy": 0.0, "num_requests": 0.0} | changes
    return Snapshot(now_s=now_s, wall=START + datetime.timedelta(seconds=now_s), **fields)


def decide_all(rules: ScalingRules, snapshots: list[Snapshot]) -> list[Decision]:
    """The decisions of one scaler, each snapshot seeing the target that the one before decided."""
    scaler = Scaler(rules)
    decisions: list[Decision] = []
    for moment in snapshots:
        if decisions:
            moment = dataclasses.replace(moment, num_target=decisions[-1].num_replicas)
        decisions.append(scaler.decide(moment))
    return decisions


@st.composite
def histories(draw: st.DrawFn) -> list[Snapshot]:
    """Any sequence of moments, also such as no real stage would show."""
    now_s, moments = 0.0, []
    low = draw(st.integers(0, 3))
    high = draw(st.integers(max(1, low), 12))
    for _ in range(draw(st.integers(1, 40))):
        now_s += draw(st.floats(0.01, 50.0))
        owed_s = draw(st.floats(0.0, 500.0))
        moments.append(
            snapshot(
                now_s,
                num_running=draw(st.integers(0, 12)),
                num_target=draw(st.integers(low, high)),
                min_replicas=low,
                max_replicas=high,
                owed_s=owed_s,
                busy=draw(st.floats(0.0, 12.0)),
                num_requests=draw(st.integers(1, 300)) if owed_s else 0,
            )
        )
    return moments


RULE_CHOICES = st.builds(
    ScalingRules,
    may_owe_s=st.floats(0.5, 100.0),
    cold_start_s=st.floats(0.0, 200.0),
    hold_s=st.floats(0.0, 300.0),
    idle_to_zero_s=st.floats(300.0, 900.0),
)


@given(RULE_CHOICES, histories())
def test_decisions_are_within_bounds_and_say_why(rules: ScalingRules, moments: list[Snapshot]) -> None:
    for moment, decision in zip(moments, decide_all(rules, moments), strict=True):
        assert moment.min_replicas <= decision.num_replicas <= moment.max_replicas
        assert decision.reason


@given(RULE_CHOICES, histories())
def test_the_same_history_gives_the_same_decisions(rules: ScalingRules, moments: list[Snapshot]) -> None:
    assert decide_all(rules, moments) == decide_all(rules, moments)


@given(RULE_CHOICES, histories(), st.floats(0.0, 1000.0))
def test_more_work_never_means_fewer_replicas(rules: ScalingRules, moments: list[Snapshot], more_s: float) -> None:
    last = moments[-1]
    busier = dataclasses.replace(last, owed_s=last.owed_s + more_s, num_requests=last.num_requests + 1)
    fewer = decide_all(rules, moments)[-1]
    more = decide_all(rules, [*moments[:-1], busier])[-1]
    assert more.num_replicas >= fewer.num_replicas


@given(RULE_CHOICES, histories())
def test_steps_down_around_a_step_up_are_a_hold_apart(rules: ScalingRules, moments: list[Snapshot]) -> None:
    decisions = decide_all(rules, moments)
    last_up_s: float | None = None
    for moment, one, other in zip(moments[1:], decisions, decisions[1:], strict=False):
        if other.num_replicas > one.num_replicas:
            last_up_s = moment.now_s
        elif other.num_replicas < one.num_replicas and last_up_s is not None:
            assert moment.now_s - last_up_s > rules.hold_s


@given(RULE_CHOICES, histories())
def test_sleep_needs_a_whole_idle_time_without_work(rules: ScalingRules, moments: list[Snapshot]) -> None:
    last_work_s = moments[0].now_s if moments[0].num_target else -float("inf")
    for moment, decision in zip(moments, decide_all(rules, moments), strict=True):
        last_work_s = moment.now_s if moment.owed_s or moment.num_requests else last_work_s
        is_idle = moment.now_s - last_work_s >= rules.idle_to_zero_s
        if moment.min_replicas == 0:
            assert (decision.num_replicas == 0) == is_idle


def test_without_a_cold_start_the_number_is_owed_work_over_what_a_replica_may_owe() -> None:
    rules = dataclasses.replace(RULES, cold_start_s=0.0)
    for owed_s, wanted in ((1.0, 1), (10.0, 1), (10.1, 2), (95.0, 10)):
        decision = Scaler(rules).decide(snapshot(owed_s=owed_s, num_requests=50))
        assert (decision.num_replicas, decision.cause) == (wanted, "work")


def test_what_present_replicas_do_while_new_ones_start_is_not_ordered_again() -> None:
    slow = dataclasses.replace(RULES, cold_start_s=120.0)
    assert Scaler(slow).decide(snapshot(owed_s=100.0, num_requests=50)).num_replicas == 1, "it is done before"
    assert Scaler(RULES).decide(snapshot(owed_s=100.0, num_requests=50)).num_replicas > 5


def test_what_was_ordered_is_not_ordered_again_while_it_starts() -> None:
    rules = dataclasses.replace(RULES, cold_start_s=60.0)
    owed = [snapshot(t, owed_s=400.0, num_requests=100, busy=1.0) for t in range(0, 60, 5)]
    numbers = [decision.num_replicas for decision in decide_all(rules, owed)]
    assert numbers[0] > 1
    assert set(numbers) == {numbers[0]}


def test_a_long_request_that_runs_is_no_reason_for_a_second_replica() -> None:
    running = [snapshot(float(t), owed_s=60.0 - t, num_requests=1, busy=1.0) for t in range(60)]
    assert {decision.num_replicas for decision in decide_all(RULES, running)} == {1}


def test_a_replica_is_kept_that_arriving_work_needs_though_nothing_waits() -> None:
    rules = dataclasses.replace(RULES, hold_s=0.0)
    steady = [snapshot(float(t), owed_s=3.0, num_requests=3, num_running=4, num_target=4, busy=3.2) for t in range(90)]
    last = decide_all(rules, steady)[-1]
    assert (last.num_replicas, last.cause) == (4, "busy"), "three would be busy more than 85 % of the time"


def test_a_successor_keeps_what_runs_for_the_hold_time() -> None:
    """After a crash of the controller, or with new rules."""
    idle = [snapshot(float(t), num_running=4, num_target=4) for t in (0, 30, 60, 61, 119, 121)]
    numbers = [(d.num_replicas, d.cause) for d in decide_all(RULES, idle)]
    assert numbers == [(4, "held"), (4, "held"), (4, "held"), (1, "awake"), (1, "awake"), (0, "awake")]


def test_a_successor_does_not_wake_what_sleeps() -> None:
    assert Scaler(RULES).decide(snapshot(num_running=0, num_target=0)).num_replicas == 0


def test_work_wakes_what_sleeps() -> None:
    decision = Scaler(RULES).decide(snapshot(num_running=0, num_target=0, owed_s=2.0, num_requests=1))
    assert (decision.num_replicas, decision.cause) == (1, "work")


def test_what_is_wanted_above_the_maximum_is_said() -> None:
    decision = Scaler(RULES).decide(snapshot(owed_s=1000.0, num_requests=100, max_replicas=4))
    assert (decision.num_replicas, decision.cause) == (4, "maximum")
    assert "max_replicas; " in decision.reason


BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
WORKDAYS = ("mon", "tue", "wed", "thu", "fri")
DAYTIME = WarmHours(num_replicas=2, days=WORKDAYS, start=datetime.time(8), end=datetime.time(20))
NIGHT = WarmHours(num_replicas=3, days=("fri",), start=datetime.time(22), end=datetime.time(6))


@pytest.mark.parametrize(
    ("local", "wanted"),
    [
        ("2026-03-02 07:59", 0),
        ("2026-03-02 08:00", 2),
        ("2026-03-02 19:59", 2),
        ("2026-03-02 20:00", 0),
        ("2026-03-06 21:59", 0),
        ("2026-03-06 22:00", 3),
        ("2026-03-07 05:59", 3),  # Saturday, the night that began on Friday
        ("2026-03-07 06:00", 0),
        ("2026-03-08 12:00", 0),
        ("2026-07-06 08:00", 2),  # in summer time
        ("2026-07-06 07:59", 0),
    ],
)
def test_the_floor_follows_the_time_of_day(local: str, wanted: int) -> None:
    rules = dataclasses.replace(RULES, warm_hours=(DAYTIME, NIGHT), time_zone=BERLIN)
    wall = datetime.datetime.fromisoformat(local).replace(tzinfo=BERLIN).astimezone(datetime.UTC)
    decision = Scaler(rules).decide(dataclasses.replace(snapshot(num_running=0, num_target=0), wall=wall))
    assert decision.num_replicas == wanted
    assert decision.cause == ("warm" if wanted else "awake")


def test_hours_from_midnight_to_midnight_are_the_whole_day() -> None:
    always = WarmHours(num_replicas=1, days=("tue",))
    tuesday = datetime.datetime(2026, 3, 3, tzinfo=datetime.UTC)
    hours = [tuesday + datetime.timedelta(hours=h) for h in range(-1, 26)]
    assert [always.holds_at(hour) for hour in hours] == [False] + [True] * 24 + [False] * 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"may_owe_s": 0.0}, "may_owe_s"),
        ({"cold_start_s": -1.0}, "cold_start_s"),
        ({"hold_s": float("inf")}, "hold_s"),
        ({"idle_to_zero_s": 30.0}, r"idle_to_zero_s must be at least hold_s \(60\)"),
        ({"max_utilisation": 1.2}, "max_utilisation"),
    ],
)
def test_rules_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(RULES, **changes)


@pytest.mark.parametrize(("changes", "says"), [({"num_replicas": 0}, "at least 1"), ({"days": ("monday",)}, "days")])
def test_hours_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        WarmHours(**({"num_replicas": 1} | changes))


# -- on a simulated fleet ---------------------------------------------------------------------------------------------


def run(arrivals: list[Arrival], rules: ScalingRules, *, until_s: float, **options: int) -> Run:
    return simulate(arrivals, Scaler(rules).decide, until_s=until_s, cold_start_s=rules.cold_start_s, **options)


def poisson(seed: int, *, rate: float, work_s: float, until_s: float, from_s: float = 0.0) -> list[Arrival]:
    source, at_s, arrivals = random.Random(seed), from_s, []
    while (at_s := at_s + source.expovariate(rate)) < until_s:
        arrivals.append(Arrival(at_s=at_s, work_s=work_s))
    return arrivals


@settings(max_examples=15)
@given(
    load=st.floats(0.3, 6.0), work_s=st.sampled_from([0.5, 2.0, 8.0]), cold_start_s=st.sampled_from([0.0, 20.0, 90.0])
)
def test_a_steady_trace_settles_on_one_number(load: float, work_s: float, cold_start_s: float) -> None:
    rules = dataclasses.replace(RULES, cold_start_s=cold_start_s)
    steady = [Arrival(at_s=k * work_s / load, work_s=work_s) for k in range(int(900.0 * load / work_s))]
    ran = run(steady, rules, until_s=900.0)
    assert ran.num_changes(after_s=600.0) == 0
    assert ran.moments[-1].num_wanted >= load, "fewer would not keep up"
    assert ran.moments[-1].owed_s <= ran.moments[-1].num_wanted * (rules.may_owe_s + work_s)


def test_random_arrivals_do_not_make_it_flap() -> None:
    rules = ScalingRules(may_owe_s=20.0, cold_start_s=60.0, hold_s=300.0, idle_to_zero_s=600.0)
    ran = run(poisson(1, rate=0.7, work_s=4.0, until_s=3600.0), rules, until_s=3600.0)
    assert ran.num_changes(after_s=300.0) <= 2 * 3600.0 / rules.hold_s
    assert {moment.num_wanted for moment in ran.moments if moment.at_s > 600.0} <= {3, 4, 5, 6}


def test_a_burst_is_answered_at_once_and_let_go_once() -> None:
    burst = [Arrival(at_s=100.0, work_s=4.0) for _ in range(60)]
    ran = run(burst, RULES, until_s=600.0)
    peak = max(moment.num_wanted for moment in ran.moments)
    assert next(m.at_s for m in ran.moments if m.num_wanted > 1) <= 101.0
    assert 8 <= peak <= 60
    falls = [m.at_s for m, n in zip(ran.moments, ran.moments[1:], strict=False) if n.num_wanted < m.num_wanted]
    assert falls[0] >= 100.0 + RULES.hold_s
    assert ran.moments[-1].num_wanted == 0
    assert len(ran.latencies_s) == 60


def test_work_counts_and_not_requests() -> None:
    """As many requests of either kind: the light ones need one replica, the heavy ones several."""
    light = run([Arrival(at_s=0.5 * k, work_s=0.1) for k in range(600)], RULES, until_s=300.0)
    heavy = run([Arrival(at_s=0.5 * k, work_s=2.0) for k in range(600)], RULES, until_s=300.0)
    assert max(moment.num_wanted for moment in light.moments) == 1
    assert heavy.moments[-1].num_wanted >= 4


def test_it_needs_nothing_but_the_standard_library() -> None:
    code = """
import sys
import serve_app.scaling.decision
foreign = {name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names - {'serve_app', '__main__'}
print(*sorted(name for name in foreign if not name.startswith('_')))
"""
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=".")
    assert done.stdout.split() == []
