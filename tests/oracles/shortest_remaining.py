"""What :meth:`engine.scheduler.ShortestRemaining.choose` chooses, written down without regard to speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from engine.scheduler import MARGIN, MAX_COUNTED, PRIORITY_FACTOR, STRETCH, Candidate, StepBudget


def choose(
    candidates: Sequence[Candidate],
    budget: StepBudget,
    now_s: float,
    step_seconds: Callable[[tuple[int, ...]], float],
) -> list[Candidate]:
    """The first of three ways to go on after which the latest is late by least, where none is late by rank."""

    def is_hopeless(one: Candidate) -> bool:
        return one.deadline_s is not None and now_s + one.remaining_device_s > one.deadline_s

    def rank(one: Candidate) -> tuple[bool, float]:
        return is_hopeless(one), one.remaining_device_s * PRIORITY_FACTOR ** (1 - one.priority)

    def due_s(one: Candidate) -> float:
        fair_s = one.arrival_s + STRETCH * (one.first_come_s - one.arrival_s)
        return fair_s if one.deadline_s is None or is_hopeless(one) else min(fair_s, one.deadline_s)

    def rows(chosen: Sequence[Candidate]) -> tuple[int, ...]:
        return tuple(num for one in chosen for num in one.row_tokens)

    def together(order: Sequence[Candidate]) -> list[Candidate]:
        riding: list[Candidate] = []
        for one in order:
            tokens = rows([*riding, one])
            if riding:
                added_s = step_seconds(tokens) - step_seconds(rows(riding))
                saved_s = step_seconds(one.row_tokens) - added_s
                gain = min(len(order) - len(riding), MAX_COUNTED) * saved_s
                is_within = len(tokens) <= budget.max_samples and sum(tokens) <= budget.max_tokens
                if not is_within or gain < len(riding) ** 2 * added_s:
                    continue
            riding.append(one)
        return riding

    def late_s(chosen: Sequence[Candidate]) -> float:
        then_s = now_s + step_seconds(rows(chosen))
        work_s, latest_s = 0.0, -math.inf
        for one in by_due:
            work_s += one.remaining_device_s
            if one in chosen:
                work_s -= step_seconds(one.row_tokens)
            latest_s = max(latest_s, then_s + (1 + MARGIN) * work_s - due_s(one))
        return max(0.0, latest_s)

    by_due = sorted(candidates, key=due_s)
    return min((together(sorted(candidates, key=rank)), together(by_due), by_due[:1]), key=late_s, default=[])
