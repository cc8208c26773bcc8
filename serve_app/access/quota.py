"""Device seconds in a sliding window: what is spent, and what is promised to requests that are still at work.

A request reserves what it is expected to take and is charged what it took. Nothing is promised beyond the quota, what
is spent included. So any window holds at most the quota, plus what the requests that were at work at once took above
what was promised to them.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Final

_NUM_SLOTS: Final = 60
"""Charges close to each other are remembered as one, so that a client takes a kilobyte whatever it does."""


@dataclasses.dataclass(kw_only=True, slots=True)
class _Slot:
    first_s: float
    last_s: float
    device_s: float


class DeviceQuota:
    """One client's use. Times are on the caller's clock and never go back."""

    __slots__ = ("_promises_s", "_slots", "_spent_s")

    def __init__(self) -> None:
        self._slots: collections.deque[_Slot] = collections.deque()
        self._spent_s = 0.0
        self._promises_s: dict[str, float] = {}

    @property
    def promised_s(self) -> float:
        """Reserved, and neither charged nor released."""
        return sum(self._promises_s.values())

    def spent_s(self, now_s: float, *, window_s: float) -> float:
        """Charged within the window; what is older by up to a sixtieth of it may still be in."""
        while self._slots and self._slots[0].last_s + window_s <= now_s:
            self._slots.popleft()
            self._spent_s = sum(slot.device_s for slot in self._slots)  # anew: no rounding errors pile up
        return self._spent_s

    def wait_s(self, wanted_s: float, now_s: float, *, device_s: float, window_s: float) -> float:
        """Seconds until ``wanted_s`` may be reserved; 0 where it may be now, infinity where it never may.

        That is true if nothing else is charged until then, and what is promised is charged now. A request of which
        nothing is known (``wanted_s`` 0) waits until anything is left.
        """
        if wanted_s > device_s:
            return float("inf")
        promised_s = self.promised_s
        left_s = device_s - self.spent_s(now_s, window_s=window_s) - promised_s
        freed = [(slot.last_s + window_s, slot.device_s) for slot in self._slots]
        if promised_s > 0.0:
            # What is charged now keeps the slot that it joins in the window for longer.
            joined_s = freed.pop()[1] if self._joins_last(now_s, window_s=window_s) else 0.0
            freed.append((now_s + window_s, joined_s + promised_s))
        wait_s = 0.0
        for end_s, freed_s in freed:
            if left_s >= wanted_s and left_s > 0.0:
                break
            left_s, wait_s = left_s + freed_s, end_s - now_s
        return wait_s

    def reserve(self, request: str, wanted_s: float) -> None:
        """Promise a request ``wanted_s`` more; :meth:`wait_s` must have said 0."""
        self._promises_s[request] = self._promises_s.get(request, 0.0) + wanted_s

    def settle(self, request: str, spent_s: float, now_s: float, *, window_s: float) -> None:
        """The request ended: nothing is promised to it any more, and what it took is charged."""
        self._promises_s.pop(request, None)
        if spent_s <= 0.0:
            return
        self._spent_s = self.spent_s(now_s, window_s=window_s) + spent_s
        if self._joins_last(now_s, window_s=window_s):
            self._slots[-1].last_s = now_s
            self._slots[-1].device_s += spent_s
        else:
            self._slots.append(_Slot(first_s=now_s, last_s=now_s, device_s=spent_s))

    def _joins_last(self, now_s: float, *, window_s: float) -> bool:
        """A charge made now is remembered together with the last one."""
        return bool(self._slots) and now_s - self._slots[-1].first_s < window_s / _NUM_SLOTS
