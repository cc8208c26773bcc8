"""What an operator chooses about scaling, checked. Standard library only."""

from __future__ import annotations

import dataclasses
import datetime
import math
from typing import Final

WEEKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

MIN_RATE_WINDOW_S: Final = 10.0
"""Arrivals are averaged over as long as a start takes, and no shorter than this: single requests are no trend."""

USUAL_MAX_UTILISATION: Final = 0.7


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WarmHours:
    """A floor by time of day.

    Attributes:
        num_replicas: at least so many.
        days: of :data:`WEEKDAYS`; the day on which the hours begin.
        start, end: in the rules' time zone; an end that is not after the start is on the next day.
    """

    num_replicas: int
    days: tuple[str, ...] = WEEKDAYS
    start: datetime.time = datetime.time(0, 0)
    end: datetime.time = datetime.time(0, 0)

    def __post_init__(self) -> None:
        if self.num_replicas < 1:
            raise ValueError(f"num_replicas must be at least 1, got {self.num_replicas}")
        unknown = [day for day in self.days if day not in WEEKDAYS]
        if unknown or not self.days:
            raise ValueError(f"days must be some of {', '.join(WEEKDAYS)}, got {', '.join(unknown) or 'none'}")

    def holds_at(self, local: datetime.datetime) -> bool:
        """Whether the floor holds at a local time."""
        today, yesterday = (WEEKDAYS[(local.weekday() - ago) % 7] in self.days for ago in (0, 1))
        now = local.time()
        if self.start < self.end:
            return today and self.start <= now < self.end
        return (today and now >= self.start) or (yesterday and now < self.end)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScalingRules:
    """What an operator chooses.

    Attributes:
        may_owe_s: seconds of work that a replica may have before it: about how long a request may wait.
        cold_start_s: from wanting a replica to its first picture, a node's start included.
        hold_s: a number that was wanted is kept at least so long.
        idle_to_zero_s: without any request for so long, no replica is kept (where ``min_replicas`` is 0).
        max_utilisation: share of its time, 0 to 1, that a replica may be busy.
        warm_hours: floors by time of day.
        time_zone: of the warm hours.
    """

    may_owe_s: float
    cold_start_s: float
    hold_s: float
    idle_to_zero_s: float
    max_utilisation: float = USUAL_MAX_UTILISATION
    warm_hours: tuple[WarmHours, ...] = ()
    time_zone: datetime.tzinfo = datetime.UTC

    def __post_init__(self) -> None:
        for name, least in (("may_owe_s", 0.001), ("cold_start_s", 0.0), ("hold_s", 0.0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name} must be a finite number of at least {least:g}, got {value}")
        if not (math.isfinite(self.idle_to_zero_s) and self.idle_to_zero_s >= self.hold_s):
            raise ValueError(f"idle_to_zero_s must be at least hold_s ({self.hold_s:g}), got {self.idle_to_zero_s}")
        if not 0.0 < self.max_utilisation <= 1.0:
            raise ValueError(f"max_utilisation must be above 0 and at most 1, got {self.max_utilisation}")

    @property
    def rate_window_s(self) -> float:
        """What arrivals are averaged over."""
        return max(self.cold_start_s, MIN_RATE_WINDOW_S)
