"""Who takes part in the next step. Plain Python, no torch: decisions are tested on a laptop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepBudget:
    """What one step may hold: rows of the forward pass, and tokens over all rows."""

    max_samples: int
    max_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A request that could take part: its rows (two where cfg > 1) and the tokens of each."""

    request_id: str
    num_rows: int
    num_tokens_per_row: int

    @property
    def num_tokens(self) -> int:
        """Tokens over all rows: what a step is charged by."""
        return self.num_rows * self.num_tokens_per_row


SchedulingPolicy = Callable[[Sequence[Candidate], StepBudget], list[Candidate]]
"""From candidates in order of arrival and a budget to those who take part."""


def first_come(candidates: Sequence[Candidate], budget: StepBudget) -> list[Candidate]:
    """The longest run of oldest requests that fits, and never fewer than one.

    Nobody is passed over, so nobody starves: a request runs at the latest when all older ones have ended. A request
    larger than the whole budget runs alone.
    """
    chosen: list[Candidate] = []
    num_rows = num_tokens = 0
    for candidate in candidates:
        num_rows += candidate.num_rows
        num_tokens += candidate.num_tokens
        if chosen and (num_rows > budget.max_samples or num_tokens > budget.max_tokens):
            break
        chosen.append(candidate)
    return chosen
