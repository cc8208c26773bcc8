"""Who takes part in the next step. Plain Python, no torch, no clock of its own: decisions are tested on a laptop.

A policy sees every request that is here, with the device seconds it still needs, and chooses some whose rows and
tokens fit the budget of one step. Setting a request aside is cheap: it keeps its latents and what it is conditioned on,
a few megabytes.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

PolicyName = Literal["shortest_remaining", "first_come", "static_batches"]

StepSeconds = Callable[[tuple[int, ...]], float]
"""Predicted seconds of a step over rows of so many tokens (:meth:`engine.cost_model.CostModel.step_seconds`)."""

STRETCH = 2.75
"""See :class:`ShortestRemaining`. Below the 3 that is promised, because predictions miss by some percent."""

MAX_COUNTED = 8
"""Of those who wait, as many count as gaining from a saved second: others will share steps of their own later. Without
this limit a simulated overload (150 % of what the device can do) ends a third fewer requests within 3 × their work."""

MARGIN = 0.1
"""Share by which predicted work may be too short (the cost model's median error is within it)."""

RESERVE = 1.0
"""A request with a deadline is taken in where the work due before it fits, and as much again: shorter requests with
less time will come and overtake. In simulation, at ten times what a device can do, 96 % as many requests then end in
time as at the best load; without it 86 % of fewer, because long ones had filled the time of all who came later."""

PRIORITY_FACTOR = 4.0
"""A request of high priority ranks as if it had a quarter of its work left, one of low priority four times it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepBudget:
    """What one step may hold: rows of the forward pass, and tokens over all rows."""

    max_samples: int
    max_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A request that could take part.

    Attributes:
        request_id: unique among candidates.
        arrival_s: when it came, on the clock that ``now_s`` is read from.
        remaining_device_s: predicted seconds of the device it needs to its end, were it alone.
        first_come_s: when it would end if requests ran one after another in order of arrival.
        num_rows: rows of the forward pass, two where cfg > 1.
        num_tokens_per_row: text and image tokens of each.
        num_steps: of the whole request.
        is_started: whether it took part in a step already.
        priority: 0 low, 1 normal, 2 high.
        deadline_s: when it becomes worthless; None never.
    """

    request_id: str
    arrival_s: float
    remaining_device_s: float
    first_come_s: float
    num_rows: int
    num_tokens_per_row: int
    num_steps: int
    is_started: bool = False
    priority: int = 1
    deadline_s: float | None = None

    @property
    def row_tokens(self) -> tuple[int, ...]:
        """Tokens of each row."""
        return (self.num_tokens_per_row,) * self.num_rows

    @property
    def num_tokens(self) -> int:
        """Tokens over all rows: what a step is charged by."""
        return self.num_rows * self.num_tokens_per_row

    @property
    def max_wait_s(self) -> float:
        """From its arrival to its deadline; infinite without one."""
        return math.inf if self.deadline_s is None else self.deadline_s - self.arrival_s


class SchedulingPolicy(Protocol):
    """Chooses before every step. Candidates always come in order of arrival."""

    def choose(self, candidates: Sequence[Candidate], budget: StepBudget, now_s: float) -> list[Candidate]:
        """Who takes part: at least one where there is one, within the budget unless it is one alone."""
        ...

    def ahead_s(self, new: Candidate, candidates: Sequence[Candidate]) -> float:
        """Seconds of the device that would go to those already here before ``new`` takes its first step."""
        ...

    def lateness_s(self, new: Candidate, candidates: Sequence[Candidate], now_s: float) -> float:
        """By how much ``new``, or somebody because of it, would miss a deadline; not above 0 where all are met."""
        ...

    def surely_met_beside_s(self, new: Candidate) -> float:
        """Work that may be here, whosever it is, with ``new`` ending within its wait and nobody late for it."""
        ...


def make_policy(name: PolicyName, step_seconds: StepSeconds) -> SchedulingPolicy:
    """A policy by its name in the settings."""
    policies: dict[PolicyName, Callable[[], SchedulingPolicy]] = {
        "shortest_remaining": lambda: ShortestRemaining(step_seconds),
        "first_come": FirstCome,
        "static_batches": StaticBatches,
    }
    return policies[name]()


class _InOrder:
    """What policies without preemption share: everybody here goes first."""

    def ahead_s(self, new: Candidate, candidates: Sequence[Candidate]) -> float:
        """All the work that is here."""
        return sum(candidate.remaining_device_s for candidate in candidates)

    def lateness_s(self, new: Candidate, candidates: Sequence[Candidate], now_s: float) -> float:
        """Nobody is hurt but the new one."""
        if new.deadline_s is None:
            return -math.inf
        ends_s = now_s + (1 + MARGIN) * (self.ahead_s(new, candidates) + new.remaining_device_s)
        return ends_s - new.deadline_s

    def surely_met_beside_s(self, new: Candidate) -> float:
        """What lateness leaves."""
        return new.max_wait_s / (1 + MARGIN) - new.remaining_device_s


class FirstCome(_InOrder):
    """One request from its first step to its last, then the next: what most image servers do."""

    def choose(self, candidates: Sequence[Candidate], budget: StepBudget, now_s: float) -> list[Candidate]:
        """The oldest."""
        return list(candidates[:1])


class StaticBatches(_InOrder):
    """What ``@serve.batch`` does: whoever waits and has the size and steps of the oldest runs with it to the end.

    Nobody joins a batch under way. A batch may hold as much as one step may, which is kinder than counting requests.
    """

    def choose(self, candidates: Sequence[Candidate], budget: StepBudget, now_s: float) -> list[Candidate]:
        """The batch under way, or a new one."""
        under_way = [candidate for candidate in candidates if candidate.is_started]
        if under_way or not candidates:
            return under_way
        oldest = candidates[0]
        alike = (
            other
            for other in candidates
            if (other.num_tokens_per_row, other.num_steps) == (oldest.num_tokens_per_row, oldest.num_steps)
        )
        return _seated(alike, budget)


class ShortestRemaining:
    """Shortest remaining work first, step by step, and nobody far behind first come, first served.

    *Order.* By remaining device seconds, divided or multiplied by ``PRIORITY_FACTOR`` for high or low priority; those
    that will miss their deadline whatever is done come last.

    *Company.* A request joins the ``k`` before it where that pays: it delays each of them by what it adds to the step,
    and everybody else gains a ``k``-th of what the device saves by not doing its step apart (steps of ``k + 1`` instead
    of ``k`` save that much each). So ``k`` grows with the root of the queue, which is where the mean wait is least.
    Where joining saves much, small pictures on a wide device, many ride together; on a device that one picture fills,
    one after another is faster for all.

    *Nobody starves.* Each request is due at ``arrival + STRETCH × (first_come − arrival)``: a multiple of what first
    come, first served would have taken, or at its deadline where that is sooner. A step is taken only if afterwards
    everybody can still be done when due, working in order of due times; else that order is followed. New arrivals
    can't break this: work is conserved, so first come, first served has as much left as we do, and whoever comes
    now is due only after STRETCH times all of it. **Bound**: with exact predictions and without deadlines of callers,
    every request ends within STRETCH × (the work that was here when it came + its own). MARGIN is for predictions.
    """

    def __init__(self, step_seconds: StepSeconds, *, stretch: float = STRETCH, margin: float = MARGIN) -> None:
        if stretch < 1.0 + margin:
            raise ValueError(f"stretch must be at least 1 + margin = {1 + margin:g}, got {stretch:g}")
        self._step_seconds = step_seconds
        self._stretch = stretch
        self._margin = margin

    def choose(self, candidates: Sequence[Candidate], budget: StepBudget, now_s: float) -> list[Candidate]:
        """By rank where everybody can still be done when due, else what makes the latest least late."""
        if len(candidates) < 2:
            return list(candidates)
        by_due = sorted(((self._due_s(one, now_s), one) for one in candidates), key=operator.itemgetter(0))
        order = sorted(candidates, key=_rank)
        order.sort(key=lambda one: _is_hopeless(one, now_s))
        by_rank = self._riding_together(order, budget)
        if self._latest_s(by_rank, by_due, now_s) <= 0.0:
            return by_rank
        due_first = [one for _, one in by_due]
        options = (by_rank, self._riding_together(due_first, budget), due_first[:1])
        return min(options, key=lambda chosen: max(0.0, self._latest_s(chosen, by_due, now_s)))

    def ahead_s(self, new: Candidate, candidates: Sequence[Candidate]) -> float:
        """The work of those that rank before it."""
        return sum(other.remaining_device_s for other in candidates if _rank(other) <= _rank(new))

    def lateness_s(self, new: Candidate, candidates: Sequence[Candidate], now_s: float) -> float:
        """How far beyond its due time the work of those due before would reach, for it and for those after it."""
        if new.deadline_s is None:
            return -math.inf
        dues = sorted((self._due_s(other, now_s), other.remaining_device_s) for other in candidates)
        own_s = (1 + self._margin) * new.remaining_device_s
        before_s = sum(work_s for due_s, work_s in dues if due_s < new.deadline_s)
        lateness_s = now_s + (1 + RESERVE) * before_s + own_s - new.deadline_s
        work_s = before_s + new.remaining_device_s
        for due_s, other_s in dues:
            if due_s >= new.deadline_s:
                work_s += other_s
                lateness_s = max(lateness_s, now_s + (1 + self._margin) * work_s - due_s)
        return lateness_s

    def surely_met_beside_s(self, new: Candidate) -> float:
        """If all of it were due before: that leaves no less time to those who are due after."""
        return (new.max_wait_s - (1 + self._margin) * new.remaining_device_s) / (1 + max(RESERVE, self._margin))

    def _due_s(self, candidate: Candidate, now_s: float) -> float:
        due_s = candidate.arrival_s + self._stretch * (candidate.first_come_s - candidate.arrival_s)
        if candidate.deadline_s is None or _is_hopeless(candidate, now_s):
            return due_s
        return min(due_s, candidate.deadline_s)

    def _riding_together(self, order: Sequence[Candidate], budget: StepBudget) -> list[Candidate]:
        """The first in order, and who fits and pays for its seat."""
        riding: list[Candidate] = []
        row_tokens: tuple[int, ...] = ()
        step_s = 0.0
        left_out: set[tuple[int, int]] = set()  # beside those who ride now, nobody of such a shape fits and pays
        for candidate in order:
            shape = (candidate.num_rows, candidate.num_tokens_per_row)
            if shape in left_out:
                continue
            together = (*row_tokens, *candidate.row_tokens)
            together_s = self._step_seconds(together)
            added_s = together_s - step_s
            saved_s = self._step_seconds(candidate.row_tokens) - added_s
            is_paying = min(len(order) - len(riding), MAX_COUNTED) * saved_s >= len(riding) ** 2 * added_s
            if riding and not (is_paying and _fits(together, budget)):
                left_out.add(shape)
                continue
            riding.append(candidate)
            row_tokens, step_s = together, together_s
            left_out.clear()
        return riding

    def _latest_s(self, chosen: Sequence[Candidate], by_due: Sequence[tuple[float, Candidate]], now_s: float) -> float:
        """How late the latest will be if those chosen take a step and then due times are followed."""
        done_s = {one.request_id: self._step_seconds(one.row_tokens) for one in chosen}
        then_s = now_s + self._step_seconds(tuple(num for one in chosen for num in one.row_tokens))
        factor = 1 + self._margin
        work_s = 0.0
        latest_s = -math.inf
        for due_s, one in by_due:
            work_s += one.remaining_device_s
            if one.request_id in done_s:
                work_s -= done_s[one.request_id]
            late_s = then_s + factor * work_s - due_s
            if late_s > latest_s:
                latest_s = late_s
        return latest_s


def _rank(candidate: Candidate) -> float:
    return candidate.remaining_device_s * PRIORITY_FACTOR ** (1 - candidate.priority)


def _is_hopeless(candidate: Candidate, now_s: float) -> bool:
    """Whether its deadline can't be met even alone: hurrying for it would only make others late."""
    return candidate.deadline_s is not None and now_s + candidate.remaining_device_s > candidate.deadline_s


def _fits(row_tokens: Sequence[int], budget: StepBudget) -> bool:
    return len(row_tokens) <= budget.max_samples and sum(row_tokens) <= budget.max_tokens


def _seated(order: Iterable[Candidate], budget: StepBudget) -> list[Candidate]:
    """The first in order, and everybody after it who still fits."""
    seated: list[Candidate] = []
    for candidate in order:
        row_tokens = [num for other in (*seated, candidate) for num in other.row_tokens]
        if not seated or _fits(row_tokens, budget):
            seated.append(candidate)
    return seated
