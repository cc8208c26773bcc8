"""Requests a minute: a token bucket, in the form that needs one number to remember (GCRA, ITU-T I.371).

The bucket holds ``burst`` tokens and gets one every ``60 / per_minute`` seconds. Remembered is when it will be full
again. So no window of T seconds lets in more than ``burst + T · per_minute / 60`` requests.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(kw_only=True, slots=True)
class TokenBucket:
    """``full_s`` is when the bucket will be full again, on the caller's clock; before now, it is full."""

    full_s: float = float("-inf")

    def wait_s(self, now_s: float, *, per_minute: float, burst: int) -> float:
        """Seconds until a token is there; 0 where one is."""
        interval_s = 60.0 / per_minute
        return max(0.0, self.full_s - (burst - 1) * interval_s - now_s)

    def take(self, now_s: float, *, per_minute: float) -> None:
        """Take one token; :meth:`wait_s` must have said 0."""
        self.full_s = max(self.full_s, now_s) + 60.0 / per_minute
