"""Laws of the policies that choose who takes a step, over random crowds and whole simulated days."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cost_model import CostModel, LinearCost
from engine.scheduler import (
    Candidate,
    PolicyName,
    SchedulingPolicy,
    ShortestRemaining,
    StepBudget,
    StepSeconds,
    make_policy,
)
from tests.oracles import shortest_remaining

POLICIES: tuple[PolicyName, ...] = ("shortest_remaining", "first_come", "static_batches")
COST = dataclasses.replace(CostModel.simple(), step=LinearCost.of(0.02, 0.001, 0.0001, 1e-9))

budgets = st.builds(StepBudget, max_samples=st.integers(2, 8), max_tokens=st.integers(1, 10_000))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A request of a simulated day."""

    name: str
    arrival_s: float
    num_rows: int
    num_tokens: int
    num_steps: int
    priority: int = 1

    @property
    def row_tokens(self) -> tuple[int, ...]:
        return (self.num_tokens,) * self.num_rows

    @property
    def step_s(self) -> float:
        return COST.step_seconds(self.row_tokens)


jobs = st.lists(
    st.builds(
        Job,
        name=st.just(""),
        arrival_s=st.floats(0.0, 20.0),
        num_rows=st.integers(1, 2),
        num_tokens=st.sampled_from((300, 1500, 4600)),
        num_steps=st.integers(1, 30),
        priority=st.integers(0, 2),
    ),
    min_size=1,
    max_size=14,
).map(lambda crowd: [dataclasses.replace(job, name=f"r{i}") for i, job in enumerate(sorted(crowd, key=_arrival))])


def _arrival(job: Job) -> float:
    return job.arrival_s


@dataclasses.dataclass(kw_only=True)
class Day:
    """What happened: everybody's end, what first come, first served would owe at each arrival, every step's riders."""

    ended_s: dict[str, float]
    first_come_s: dict[str, float]
    steps: list[tuple[float, float, list[str]]]  # begin, seconds, names


def simulate(policy: SchedulingPolicy, day: Sequence[Job], budget: StepBudget) -> Day:
    """Run a policy with exact costs. Arrivals are seen between steps, as in an engine."""
    left = {job.name: job.num_steps for job in day}
    arriving = [(job.arrival_s, index) for index, job in enumerate(day)]
    heapq.heapify(arriving)
    here: dict[str, Job] = {}
    started: set[str] = set()
    result = Day(ended_s={}, first_come_s={}, steps=[])
    now_s = 0.0
    while arriving or here:
        if not here:
            now_s = max(now_s, arriving[0][0])
        while arriving and arriving[0][0] <= now_s:
            arrival_s, index = heapq.heappop(arriving)
            owed_s = sum(left[job.name] * job.step_s for job in here.values())
            here[day[index].name] = job = day[index]
            # Taken in at the end of the step under way: what that step did for others is over by now.
            result.first_come_s[job.name] = max(arrival_s, now_s) + owed_s + job.num_steps * job.step_s
        chosen = policy.choose(
            [
                Candidate(
                    request_id=job.name,
                    arrival_s=job.arrival_s,
                    remaining_device_s=left[job.name] * job.step_s,
                    first_come_s=result.first_come_s[job.name],
                    num_rows=job.num_rows,
                    num_tokens_per_row=job.num_tokens,
                    num_steps=job.num_steps,
                    is_started=job.name in started,
                    priority=job.priority,
                )
                for job in here.values()
            ],
            budget,
            now_s,
        )
        assert chosen, "somebody always takes part"
        names = [candidate.request_id for candidate in chosen]
        step_s = COST.step_seconds([num for candidate in chosen for num in candidate.row_tokens])
        result.steps.append((now_s, step_s, names))
        now_s += step_s
        for name in names:
            started.add(name)
            left[name] -= 1
            if left[name] == 0:
                del here[name]
                assert name not in result.ended_s
                result.ended_s[name] = now_s
    return result


@pytest.mark.parametrize("name", POLICIES)
@given(day=jobs, budget=budgets)
def test_everybody_ends_exactly_once_and_no_step_exceeds_the_budget(
    name: PolicyName, day: list[Job], budget: StepBudget
) -> None:
    result = simulate(make_policy(name, COST.step_seconds), day, budget)
    assert result.ended_s.keys() == {job.name for job in day}
    sizes = {job.name: job.row_tokens for job in day}
    for _, _, names in result.steps:
        rows = [num for rider in names for num in sizes[rider]]
        assert len(set(names)) == len(names)
        assert len(names) == 1 or (len(rows) <= budget.max_samples and sum(rows) <= budget.max_tokens)


@pytest.mark.parametrize("name", POLICIES)
@given(day=jobs, budget=budgets)
def test_the_same_arrivals_give_the_same_schedule(name: PolicyName, day: list[Job], budget: StepBudget) -> None:
    first, again = (simulate(make_policy(name, COST.step_seconds), day, budget) for _ in range(2))
    assert first.steps == again.steps


@given(day=jobs, budget=budgets, stretch=st.floats(1.2, 4.0))
def test_nobody_ends_later_than_the_stated_bound(day: list[Job], budget: StepBudget, stretch: float) -> None:
    margin = 0.1
    result = simulate(ShortestRemaining(COST.step_seconds, stretch=stretch, margin=margin), day, budget)
    for job in day:
        allowed_s = stretch * (result.first_come_s[job.name] - job.arrival_s)
        assert result.ended_s[job.name] - job.arrival_s <= allowed_s * (1 + 1e-9)


requests = st.builds(
    Candidate,
    request_id=st.just(""),
    arrival_s=st.floats(-100.0, 0.0),
    remaining_device_s=st.floats(0.05, 20.0),
    first_come_s=st.floats(0.1, 60.0),
    num_rows=st.integers(1, 2),
    num_tokens_per_row=st.sampled_from((300, 1500, 4600)),
    num_steps=st.just(20),
    priority=st.integers(0, 2),
    deadline_s=st.none() | st.floats(0.1, 60.0),
)
queues = (st.lists(requests, max_size=4) | st.lists(requests, min_size=15, max_size=30)).map(
    lambda queue: [dataclasses.replace(one, request_id=f"r{i}") for i, one in enumerate(queue)]
)
STEPS: tuple[StepSeconds, ...] = (
    COST.step_seconds,
    dataclasses.replace(COST, step=LinearCost.of(0.02, 0.001, 0.0, 1e-9)).step_seconds,
    lambda rows: 0.3 if len(rows) == 2 else 0.1,  # who does not pay beside one may pay beside three
)


@given(queue=queues, budget=budgets, stretched=st.sampled_from((1.0, 10.0, 100.0)), step_seconds=st.sampled_from(STEPS))
def test_who_is_chosen_is_who_the_definition_says(
    queue: list[Candidate], budget: StepBudget, stretched: float, step_seconds: StepSeconds
) -> None:
    """Whatever is remembered or skipped for the sake of speed. Queues in which nobody is late, some are, or all."""
    queue = [dataclasses.replace(one, first_come_s=stretched * one.first_come_s) for one in queue]
    chosen = ShortestRemaining(step_seconds).choose(queue, budget, 0.0)
    assert chosen == shortest_remaining.choose(queue, budget, 0.0, step_seconds)


@given(day=jobs, budget=budgets)
def test_first_come_runs_one_after_another(day: list[Job], budget: StepBudget) -> None:
    result = simulate(make_policy("first_come", COST.step_seconds), day, budget)
    order = [names for _, _, names in result.steps]
    assert order == [[job.name] for job in day for _ in range(job.num_steps)]


@given(day=jobs, budget=budgets)
def test_a_static_batch_is_alike_and_nobody_joins_it(day: list[Job], budget: StepBudget) -> None:
    result = simulate(make_policy("static_batches", COST.step_seconds), day, budget)
    shapes = {job.name: (job.num_tokens, job.num_steps) for job in day}
    done: set[str] = set()
    for _, _, names in result.steps:
        assert len({shapes[name] for name in names}) == 1
    for index, (_, _, names) in enumerate(result.steps):
        if names[0] not in done:
            num_steps = shapes[names[0]][1]
            assert all(step[2] == names for step in result.steps[index : index + num_steps])
            done.update(names)


def crowd(*remaining_s: float, tokens: int = 1500, priorities: Sequence[int] = ()) -> list[Candidate]:
    return [
        Candidate(
            request_id=f"r{index}",
            arrival_s=0.0,
            remaining_device_s=seconds,
            first_come_s=sum(remaining_s[: index + 1]),
            num_rows=1,
            num_tokens_per_row=tokens,
            num_steps=20,
            priority=priorities[index] if priorities else 1,
        )
        for index, seconds in enumerate(remaining_s)
    ]


WIDE = StepBudget(max_samples=8, max_tokens=10**6)
SATURATED = ShortestRemaining(lambda rows: 1e-4 * sum(rows))
UNTOUCHED = ShortestRemaining(lambda rows: 0.1)


def names(chosen: Sequence[Candidate]) -> list[str]:
    return [candidate.request_id for candidate in chosen]


def test_the_least_work_goes_first_and_priority_outranks_it() -> None:
    assert names(SATURATED.choose(crowd(9.0, 3.0, 6.0), WIDE, 0.0)) == ["r1"]
    assert names(SATURATED.choose(crowd(9.0, 3.0, 6.0, priorities=(2, 1, 1)), WIDE, 0.0)) == ["r0"]
    assert names(SATURATED.choose(crowd(9.0, 3.0, 6.0, priorities=(1, 0, 1)), WIDE, 0.0)) == ["r2"]


def test_company_is_kept_where_it_costs_nothing_and_not_where_it_gains_nothing() -> None:
    assert names(UNTOUCHED.choose(crowd(3.0, 2.0, 1.0), WIDE, 0.0)) == ["r2", "r1", "r0"]
    assert names(SATURATED.choose(crowd(3.0, 2.0, 1.0), WIDE, 0.0)) == ["r2"]


def test_who_is_due_goes_before_who_is_short() -> None:
    waiting = crowd(10.0, 1.0)
    assert names(SATURATED.choose(waiting, WIDE, 0.0)) == ["r1"]
    assert names(SATURATED.choose(waiting, WIDE, 24.0)) == ["r0"]


def test_a_deadline_pulls_a_request_forward_unless_it_is_hopeless() -> None:
    def with_deadline(deadline_s: float) -> list[Candidate]:
        big, small = crowd(10.0, 9.0)
        return [dataclasses.replace(big, deadline_s=deadline_s), small]

    assert names(SATURATED.choose(with_deadline(11.1), WIDE, 0.0)) == ["r0"]
    assert names(SATURATED.choose(with_deadline(8.0), WIDE, 0.0)) == ["r1"], "it can't be done in time, so it waits"
    assert names(SATURATED.choose(with_deadline(40.0), WIDE, 0.0)) == ["r1"], "there is time"


def test_work_that_will_be_worthless_is_done_last() -> None:
    short, long = crowd(2.0, 9.0)
    assert names(SATURATED.choose([short, long], WIDE, 0.0)) == ["r0"]
    assert names(SATURATED.choose([dataclasses.replace(short, deadline_s=1.0), long], WIDE, 0.0)) == ["r1"]


def test_lateness_says_whether_a_deadline_can_be_kept() -> None:
    here = crowd(10.0, 1.0)
    (new,) = crowd(4.0)
    new = dataclasses.replace(new, request_id="new", first_come_s=15.0)

    def lateness_s(policy: SchedulingPolicy, deadline_s: float | None) -> float:
        return policy.lateness_s(dataclasses.replace(new, deadline_s=deadline_s), here, 0.0)

    assert lateness_s(SATURATED, None) == -float("inf")
    assert lateness_s(SATURATED, 4.5) <= 0.0, "others are due later and can wait"
    assert lateness_s(SATURATED, 4.0) == pytest.approx(0.4), "the margin for error does not fit"
    soon = [dataclasses.replace(other, deadline_s=11.5) for other in here]
    assert SATURATED.lateness_s(dataclasses.replace(new, deadline_s=27.0), soon, 0.0) <= 0.0
    late_s = SATURATED.lateness_s(dataclasses.replace(new, deadline_s=20.0), soon, 0.0)
    assert late_s == pytest.approx(2 * 11.0 + 1.1 * 4.0 - 20.0), "shorter ones will come and overtake"
    first_come = make_policy("first_come", SATURATED._step_seconds)
    assert lateness_s(first_come, 10.0) == pytest.approx(1.1 * 15.0 - 10.0), "everybody here goes first"


def test_work_ahead_is_what_ranks_before() -> None:
    here = crowd(10.0, 1.0)
    (new,) = crowd(4.0)
    assert SATURATED.ahead_s(new, here) == 1.0
    assert make_policy("static_batches", SATURATED._step_seconds).ahead_s(new, here) == 11.0
