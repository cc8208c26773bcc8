"""Who is in the engine, how far each is, and what became of everyone: the part that every engine shares.

The ledger takes requests in or refuses them, asks the policy who takes the next step, ends what is cancelled or too
late, and counts. It computes nothing and knows no device. ``submit``, ``cancel`` and the questions may come from any
thread; everything else from the one thread that steps.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

from engine.cost_meter import CostMeter
from engine.cost_model import Price, RequestWork
from engine.errors import (
    DeadlineExceededError,
    EngineBusyError,
    EngineError,
    EngineStoppedError,
    InvalidRequestError,
    RequestCancelledError,
)
from engine.profile import DrawnSize
from engine.request import EngineStats, Failed, ImageRequest, Queued, RgbImage, StepProgress
from engine.scheduler import Candidate, SchedulingPolicy, StepBudget

D = TypeVar("D")

Stage = Literal["text", "vision", "denoise", "decode"]

MIN_RETRY_AFTER_S = 0.1


@dataclasses.dataclass(kw_only=True, slots=True)
class Entry(Generic[D]):
    """A request in the engine.

    Attributes:
        request, size, work: what was asked for, at which size it is drawn, what it costs.
        arrival_s: when it came.
        first_come_s: when it would end, were requests served one after another.
        started_s: when it was first chosen.
        encoded_s: when its prompts and its reference were encoded.
        text_s, vision_s: how long each of the two took.
        num_steps_done: of ``work.num_steps``.
        device_s: what it is charged for so far.
        is_cancelled: whether it ends before the next step.
        drawing: the engine's own state for it, from its first step on.
        candidate: as the policy sees it; None where that has changed.
    """

    request: ImageRequest
    size: DrawnSize
    work: RequestWork
    arrival_s: float
    first_come_s: float
    started_s: float | None = None
    encoded_s: float = 0.0
    text_s: float = 0.0
    vision_s: float = 0.0
    num_steps_done: int = 0
    device_s: float = 0.0
    is_cancelled: bool = False
    drawing: D | None = None
    candidate: Candidate | None = None

    @property
    def is_drawn(self) -> bool:
        """Whether its last step is done."""
        return self.num_steps_done == self.work.num_steps

    @property
    def is_preview_due(self) -> bool:
        """Whether the step that comes next was asked to bring a preview."""
        every = self.request.preview_every
        return every > 0 and (self.num_steps_done + 1) % every == 0

    @property
    def num_step_tokens(self) -> int:
        """Tokens of each of its steps, over its rows."""
        return sum(self.work.row_tokens)

    @property
    def deadline_s(self) -> float | None:
        """When nobody waits for it any more."""
        return None if self.request.max_wait_s is None else self.arrival_s + self.request.max_wait_s


class Ledger(Generic[D]):
    """See the module's docstring.

    Args:
        policy: who takes part in a step.
        budget: what a step may hold.
        meter: prices; observed here, step by step.
        max_waiting: requests that may wait for their first step.
        max_queued_device_s: predicted seconds of work that may be here. One request is always taken.
    """

    def __init__(
        self,
        *,
        policy: SchedulingPolicy,
        budget: StepBudget,
        meter: CostMeter,
        max_waiting: int,
        max_queued_device_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._budget = budget
        self._meter = meter
        self._max_waiting = max_waiting
        self._max_queued_device_s = max_queued_device_s
        self._clock = clock
        self._lock = threading.Lock()  # guards everything below; held for moments
        self._entries: dict[str, Entry[D]] = {}  # in order of arrival
        self._counts: dict[str, Any] = collections.defaultdict(int)  # fields of EngineStats
        self._priced_by = meter.model
        self._prices: dict[RequestWork, Price] = {}  # many of a queue are alike
        self._stopped: EngineStoppedError | None = None

    # -- from any thread -------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether any request is here."""
        with self._lock:
            return bool(self._entries)

    def submit(self, request: ImageRequest, size: DrawnSize, work: RequestWork) -> Queued:
        """Take a request in. Raises as :meth:`engine.protocol.ImageEngine.submit` says."""
        with self._lock:
            if self._stopped is not None:
                raise self._stopped
            if request.request_id in self._entries:
                raise InvalidRequestError(f"request id {request.request_id} is already in the engine")
            now_s = self._clock()
            here = self._candidates()
            own_s = self._price(work).seconds(work.num_steps)
            queued_s = sum(candidate.remaining_device_s for candidate in here)
            entry: Entry[D] = Entry(
                request=request, size=size, work=work, arrival_s=now_s, first_come_s=now_s + queued_s + own_s
            )
            new = self._candidate(entry)
            try:
                self._check_deadline(new)
                self._check_room(new, here, queued_s)
            except EngineError:
                self._count(num_refused=1)
                raise
            self._entries[request.request_id] = entry
            self._count(num_submitted=1)
            return Queued(
                request_id=request.request_id,
                predicted_wait_s=self._policy.ahead_s(new, here),
                predicted_device_s=own_s,
            )

    def cancel(self, request_id: str) -> bool:
        """Drop a request before the next step. False where it is not here."""
        with self._lock:
            entry = self._entries.get(request_id)
            if entry is not None:
                entry.is_cancelled = True
            return entry is not None

    def stop(self, error: EngineStoppedError) -> None:
        """Take nothing further; who is here ends before the next step."""
        with self._lock:
            self._stopped = self._stopped or error

    def check(self) -> None:
        """Raise EngineStoppedError where the engine can't serve, or lost count of a request."""
        if self._stopped is not None:
            raise self._stopped
        stats = self.stats()
        if not stats.is_conserved():
            raise EngineStoppedError(f"requests were lost or counted twice: {stats}")

    def stats(self) -> EngineStats:
        """Counters, and what is here."""
        with self._lock:
            num_waiting = self._num_waiting()
            return EngineStats(
                **self._counts,
                max_step_tokens=self._budget.max_tokens,
                num_waiting=num_waiting,
                num_running=len(self._entries) - num_waiting,
                queued_device_s=sum(candidate.remaining_device_s for candidate in self._candidates()),
                cost_model_error=self._meter.median_error,
            )

    # -- from the thread that steps, in the order of events --------------------------------------------------------

    def begin_step(self) -> tuple[list[Failed], list[Entry[D]]]:
        """Those who ended without taking another step, and those who take the next."""
        with self._lock:
            now_s = self._clock()
            failed = self._drop(now_s)
            chosen = self._policy.choose(self._candidates(), self._budget, now_s)
            entries = [self._entries[candidate.request_id] for candidate in chosen]
            for entry in entries:
                if entry.started_s is None:
                    entry.started_s, entry.candidate = now_s, None
            return failed, entries

    def charge(self, entry: Entry[D], stage: Stage, seconds: float) -> None:
        """The device worked for one request alone."""
        with self._lock:
            self._charge(entry, stage, seconds)

    def step_done(
        self, entries: Sequence[Entry[D]], step_s: float, previews: dict[str, RgbImage] | None = None
    ) -> list[StepProgress]:
        """A step was taken together: everyone pays by tokens, and the shares add up to the step."""
        row_tokens = [num for entry in entries for num in entry.work.row_tokens]
        with self._lock:
            self._meter.observe_step(row_tokens, step_s)
            for entry in entries:
                entry.num_steps_done += 1
                entry.candidate = None
                self._charge(entry, "denoise", step_s * entry.num_step_tokens / sum(row_tokens))
            self._count(num_steps=1, num_sample_steps=len(entries), num_step_tokens=sum(row_tokens))
        return [
            StepProgress(
                request_id=entry.request.request_id,
                step=entry.num_steps_done,
                num_steps=entry.work.num_steps,
                preview=(previews or {}).get(entry.request.request_id),
            )
            for entry in entries
        ]

    def finished(self, entry: Entry[D]) -> None:
        """A request ends with its picture."""
        with self._lock:
            del self._entries[entry.request.request_id]
            self._count(num_finished=1)

    def failed(self, entry: Entry[D], error: EngineError) -> Failed:
        """A request ends without a picture; what the device did for it was wasted."""
        with self._lock:
            return self._failed(entry, error)

    # -- the caller holds the lock ---------------------------------------------------------------------------------

    def _check_deadline(self, new: Candidate) -> None:
        if new.remaining_device_s > new.max_wait_s:
            raise DeadlineExceededError(
                f"this picture alone takes about {new.remaining_device_s:.1f} s here, more than max_wait_s "
                f"({new.max_wait_s:g}); allow more time, or ask for fewer steps or a smaller picture"
            )

    def _check_room(self, new: Candidate, here: Sequence[Candidate], queued_s: float) -> None:
        """One request is always taken. The others are told when they would be, if nobody else came: work drains by a
        second a second, or faster where requests share steps."""
        if not here:
            return
        room_s = min(self._max_queued_device_s - new.remaining_device_s, self._policy.surely_met_beside_s(new))
        waiting = [other.remaining_device_s for other in here if not other.is_started]
        if len(waiting) >= self._max_waiting:
            reason = f"{len(waiting)} requests wait here already"
            room_s = min(room_s, sum(waiting))  # with less work than that here, one of them has started
        elif queued_s + new.remaining_device_s > self._max_queued_device_s:
            reason = f"about {queued_s:.0f} s of work wait here already"
        elif self._policy.lateness_s(new, here, new.arrival_s) > 0.0:
            reason = f"too much work is here to finish this picture within max_wait_s ({new.max_wait_s:g})"
        else:
            return
        retry_after_s = max(MIN_RETRY_AFTER_S, queued_s - max(0.0, room_s))
        raise EngineBusyError(f"{reason}; try again in {retry_after_s:.1f} s", retry_after_s)

    def _drop(self, now_s: float) -> list[Failed]:
        entries = list(self._entries.values())
        if self._stopped is not None:
            return [self._failed(entry, self._stopped) for entry in entries]
        failed: list[Failed] = []
        for entry in entries:
            if entry.is_cancelled:
                failed.append(self._failed(entry, RequestCancelledError("the request was cancelled")))
            elif entry.deadline_s is not None and now_s >= entry.deadline_s:
                message = f"the picture was not finished within max_wait_s ({entry.request.max_wait_s:g})"
                failed.append(self._failed(entry, DeadlineExceededError(message)))
        return failed

    def _failed(self, entry: Entry[D], error: EngineError) -> Failed:
        del self._entries[entry.request.request_id]
        match error:
            case RequestCancelledError():
                outcome = "num_cancelled"
            case DeadlineExceededError():
                outcome = "num_expired"
            case _:
                outcome = "num_failed"
        self._count(**{outcome: 1, "num_wasted_steps": entry.num_steps_done})
        return Failed(request_id=entry.request.request_id, error=error)

    def _candidates(self) -> list[Candidate]:
        """Everybody. Made anew only where something changed: a queue may be long, and steps are many."""
        self._reprice()
        return [entry.candidate or self._candidate(entry) for entry in self._entries.values()]

    def _candidate(self, entry: Entry[D]) -> Candidate:
        work, price = entry.work, self._price(entry.work)
        num_left, is_started = work.num_steps - entry.num_steps_done, entry.started_s is not None
        entry.candidate = Candidate(
            request_id=entry.request.request_id,
            arrival_s=entry.arrival_s,
            remaining_device_s=price.seconds_from(num_left) if is_started else price.seconds(num_left),
            first_come_s=entry.first_come_s,
            num_rows=work.num_rows,
            num_tokens_per_row=work.num_tokens_per_row,
            num_steps=work.num_steps,
            is_started=is_started,
            priority=entry.request.priority,
            deadline_s=entry.deadline_s,
        )
        return entry.candidate

    def _reprice(self) -> None:
        """The model is another one after every measured step."""
        if self._priced_by is not (model := self._meter.model):
            self._priced_by = model
            self._prices.clear()
            for entry in self._entries.values():
                entry.candidate = None

    def _price(self, work: RequestWork) -> Price:
        if work not in self._prices:
            self._prices[work] = self._priced_by.price(work)
        return self._prices[work]

    def _num_waiting(self) -> int:
        return sum(entry.started_s is None for entry in self._entries.values())

    def _charge(self, entry: Entry[D], stage: Stage, seconds: float) -> None:
        entry.device_s += seconds
        self._count(**{"device_s": seconds, f"{stage}_s": seconds})

    def _count(self, **increments: float) -> None:
        for name, by in increments.items():
            self._counts[name] += by
