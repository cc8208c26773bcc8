"""The simulated fleet keeps the books: everybody is served once, idle devices cost what they cost, scaling scales."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import pytest

from benchmarks import scaling, traces
from benchmarks.scheduler import crowds
from benchmarks.scheduler.compare import POLICIES, ranking_agreement, under_every_policy
from benchmarks.scheduler.simulate import as_measured, replay, twin_of
from benchmarks.simulation.fleet import Fleet, FleetSettings
from benchmarks.traces import Arrival, Mix
from engine.cost_model import CostModel
from engine.profile import load_profile
from engine.scheduler import PolicyName, StepBudget

SETTINGS = FleetSettings(
    profile=load_profile("flux-dev"),
    cost=CostModel.simple(step_s=0.05, token_s=2e-5),
    policy="shortest_remaining",
    budget=StepBudget(max_samples=8, max_tokens=8192),
    scatter=0.0,
)


def crowd(rate_per_s: float, duration_s: float = 120.0) -> tuple[Arrival, ...]:
    return traces.generate(arrivals="bursts", rate_per_s=rate_per_s, duration_s=duration_s, seed=1)


def test_a_request_alone_takes_its_price() -> None:
    lonely = tuple(
        dataclasses.replace(arrival, at_s=1000.0 * number) for number, arrival in enumerate(crowd(1.0, 20.0))
    )
    run = Fleet(SETTINGS).run(lonely)
    for outcome in run.outcomes:
        assert outcome.latency_s == pytest.approx(outcome.alone_s)
    assert run.busy_s == pytest.approx(sum(outcome.alone_s for outcome in run.outcomes))


@pytest.mark.parametrize("policy", POLICIES)
def test_everybody_is_served_and_no_device_works_twice_at_a_time(policy: PolicyName) -> None:
    settings = dataclasses.replace(SETTINGS, policy=policy, num_replicas=3)
    run = Fleet(settings).run(crowd(1.5))
    assert all(outcome.latency_s is not None and outcome.latency_s > 0 for outcome in run.outcomes)
    assert run.busy_s <= run.ended_s * 3
    assert run.replica_s == pytest.approx(run.ended_s * 3)
    assert Fleet(settings).run(crowd(1.5)) == run, "a seed gives one run"


def test_who_meets_full_replicas_is_refused_and_who_waits_too_long_goes_away() -> None:
    settings = dataclasses.replace(SETTINGS, num_replicas=2, max_requests=3, time_limit_s=20.0)
    trace = crowd(4.0)
    fleet = Fleet(settings)
    run = fleet.run(trace)
    drawn = [outcome for outcome in run.outcomes if outcome.latency_s is not None]
    assert 0 < len(drawn) < len(trace)
    assert fleet.num_requests == 0 and fleet.owed_s == 0.0
    stats = [replica.ledger.stats() for replica in fleet.replicas]
    assert all(one.is_conserved() for one in stats)
    assert sum(one.num_finished for one in stats) == len(drawn)
    assert sum(one.num_cancelled for one in stats) > 0
    assert sum(one.num_submitted for one in stats) < len(trace), "some met two full replicas"
    slowest = max(outcome.alone_s for outcome in run.outcomes)
    assert max(outcome.latency_s or 0.0 for outcome in drawn) < 20.0 + slowest
    full = Fleet(dataclasses.replace(SETTINGS, max_queued_device_s=5.0)).run(trace)
    assert any(outcome.latency_s is None for outcome in full.outcomes)


def test_nobody_waits_longer_for_a_replica_that_starts() -> None:
    fleet = Fleet(dataclasses.replace(SETTINGS, num_replicas=0, cold_start_s=60.0, time_limit_s=30.0), lambda _: 1)
    trace = crowd(0.2)
    run = fleet.run(trace)
    early = [outcome.arrival.at_s < 30.0 for outcome in run.outcomes]
    assert [outcome.latency_s is None for outcome in run.outcomes][: sum(early)] == [True] * sum(early)
    assert not all(outcome.latency_s is None for outcome in run.outcomes)


def test_one_after_another_is_in_order() -> None:
    run = Fleet(dataclasses.replace(SETTINGS, policy="first_come")).run(crowd(2.0, 30.0))
    ends_s = [outcome.arrival.at_s + (outcome.latency_s or 0.0) for outcome in run.outcomes]
    assert ends_s == sorted(ends_s)
    for (one, end_s), (_, next_s) in itertools.pairwise(zip(run.outcomes, ends_s, strict=True)):
        assert next_s - end_s >= 0 and one.latency_s is not None


def test_a_fleet_wakes_grows_and_goes_to_sleep() -> None:
    burst = crowd(3.0, 200.0)
    late = dataclasses.replace(burst[0], at_s=4000.0)
    fleet = Fleet(
        dataclasses.replace(SETTINGS, num_replicas=0, cold_start_s=60.0),
        scaling.ByWork(8, may_owe_s=5.0, max_utilisation=0.7),
    )
    run = fleet.run((*burst, late))
    assert all(outcome.latency_s is not None for outcome in run.outcomes)
    assert max(moment.num_serving for moment in run.moments) > 2
    assert min(moment.num_serving for moment in run.moments if moment.at_s > 3000) == 0
    assert run.outcomes[-1].latency_s == pytest.approx(60.0 + run.outcomes[-1].alone_s, abs=10.0)
    assert run.replica_s < 8 * run.ended_s


def test_fewer_requests_at_night() -> None:
    trace = scaling.day(peak_rate_per_s=2.0, duration_s=3600.0, seed=0, mix=Mix())
    by_hour = [sum(start <= arrival.at_s < start + 360 for arrival in trace) for start in range(0, 3600, 360)]
    assert by_hour[0] < 0.3 * max(by_hour)


def test_the_cost_of_full_size_steps_is_fitted() -> None:
    speed = {
        f"{side}x{side} batch {batch}": {"ours": {"median_ms": 10.0 + 0.03 * batch * (512 + (side // 16) ** 2)}}
        for side, batch in ((512, 1), (512, 4), (1024, 1), (1024, 2))
    }
    request = {"first": {"encode_s": 0.06, "decode_s": 0.1}, "again": {"encode_s": 0.01, "decode_s": 0.1}}
    basis = as_measured({"speed": speed, "request": request, "device": "a device"})
    cost = CostModel.from_dict(basis["cost_model"])
    assert cost.step_seconds([1536] * 2) == pytest.approx(0.010 + 0.03e-3 * 3072, rel=0.02)
    assert cost.decode_seconds(1024 * 1024) == pytest.approx(0.1)


def test_a_measured_crowd_is_met_again_on_a_device_as_slow_as_then() -> None:
    settings = dataclasses.replace(SETTINGS, tick_s=1e6)
    (crowd,) = (
        crowd
        for crowd in crowds.crowds(
            settings.profile, settings.cost, Mix(), loads=(0.8,), requests=30, num_devices=1, seed=3
        )
        if crowd.arrivals == "bursts"
    )
    slow = dataclasses.replace(settings, cost=crowds.slowed(settings.cost, 1.25))
    measured = under_every_policy(crowd, functools.partial(replay, slow, settings.cost))
    twin = twin_of(settings, Mix(), measured, seed=3)
    assert twin["slowness"] == {policy: pytest.approx(1.25, rel=0.01) for policy in POLICIES}
    for policy in POLICIES:
        found, expected = twin["policies"][policy], measured["policies"][policy]
        assert found["good_share"] == pytest.approx(expected["good_share"], abs=0.04)
        assert found["latency_s"] == pytest.approx(expected["latency_s"], rel=0.05)


def test_rankings_are_compared_pair_by_pair() -> None:
    def made(*goodputs: float) -> list[dict[str, Any]]:
        policies = {name: {"goodput_per_s": value} for name, value in zip(POLICIES, goodputs, strict=True)}
        return [{"arrivals": "poisson", "load": 0.8, "policies": policies}]

    assert ranking_agreement(made(1, 2, 3), made(10, 20, 30)) == {"num_pairs": 3, "num_agreeing": 3}
    assert ranking_agreement(made(1, 2, 3), made(1, 3, 2))["num_agreeing"] == 2
    assert ranking_agreement(made(1, 1.01, 3), made(2, 1, 3))["num_agreeing"] == 3
