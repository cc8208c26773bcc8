"""Laws of the step scheduler, over random crowds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.scheduler import Candidate, StepBudget, first_come

candidates = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 5000)).map(lambda pair: pair), max_size=12).map(
    lambda pairs: [
        Candidate(request_id=str(index), num_rows=rows, num_tokens_per_row=tokens)
        for index, (rows, tokens) in enumerate(pairs)
    ]
)
budgets = st.builds(StepBudget, max_samples=st.integers(2, 8), max_tokens=st.integers(1, 10_000))


@given(candidates, budgets)
def test_the_chosen_are_the_oldest_and_never_none(crowd: list[Candidate], budget: StepBudget) -> None:
    chosen = first_come(crowd, budget)
    assert chosen == crowd[: len(chosen)]
    assert bool(chosen) == bool(crowd)


@given(candidates, budgets)
def test_the_budget_holds_for_company_and_is_used_up(crowd: list[Candidate], budget: StepBudget) -> None:
    chosen = first_come(crowd, budget)

    def fits(some: list[Candidate]) -> bool:
        num_rows, num_tokens = sum(c.num_rows for c in some), sum(c.num_tokens for c in some)
        return num_rows <= budget.max_samples and num_tokens <= budget.max_tokens

    assert len(chosen) <= 1 or fits(chosen)
    assert len(chosen) == len(crowd) or not fits(crowd[: len(chosen) + 1])


@given(candidates, budgets)
def test_nobody_starves(crowd: list[Candidate], budget: StepBudget) -> None:
    rounds = 0
    while crowd:
        crowd = crowd[len(first_come(crowd, budget)) :]
        rounds += 1
        assert rounds <= 12
