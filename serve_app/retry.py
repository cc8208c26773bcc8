"""When to ask a busy server again: its own ``Retry-After``, or doubling pauses; never beyond the time there is."""

from __future__ import annotations

import dataclasses
import datetime
import email.utils
import math
from collections.abc import Callable

FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 30.0
MAX_JITTER_S = 1.0
"""Added to the server's own figure: everyone it turned away together must not come back together."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often and how long a client comes back after 429 and 503.

    Attributes:
        max_retries: further attempts after the first.
        random: uniform in [0, 1).
        now: the wall clock, for dates in ``Retry-After``.
    """

    max_retries: int
    random: Callable[[], float]
    now: Callable[[], datetime.datetime]

    def pause_s(self, num_failed: int, retry_after: str | None, *, time_left_s: float) -> float | None:
        """Seconds to wait before the next attempt; None to give up: too many attempts, or too little time left.

        Args:
            num_failed: attempts that were turned away so far, at least 1.
            retry_after: the header's value, if the server sent one.
            time_left_s: what remains for everything, the next attempt included.
        """
        if num_failed > self.max_retries:
            return None
        asked_s = parse_retry_after(retry_after, now=self.now()) if retry_after is not None else None
        if asked_s is not None:
            pause_s = asked_s + MAX_JITTER_S * self.random()
        else:
            backoff_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (num_failed - 1))
            pause_s = backoff_s * (0.5 + 0.5 * self.random())
        return pause_s if pause_s < time_left_s else None


def parse_retry_after(value: str, *, now: datetime.datetime) -> float | None:
    """Seconds to wait, from either form of ``Retry-After`` (RFC 9110 §10.2.3). None where it is neither.

    Args:
        value: ``120``, or ``Fri, 31 Dec 2027 23:59:59 GMT``. Fractions of a second are taken too.
        now: timezone-aware.
    """
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        if when.tzinfo is None:  # "-0000": UTC of unknown origin
            when = when.replace(tzinfo=datetime.UTC)
        return max(0.0, (when - now).total_seconds())
    return max(0.0, seconds) if math.isfinite(seconds) else None
