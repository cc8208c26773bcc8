"""How many requests one process works on, and when there will be room for another."""

from __future__ import annotations

from typing import Final

WEIGHT: Final = 0.1
"""Of the latest request in the mean: the last twenty or so count."""

FIRST_GUESS_S: Final = 2.0
MIN_RETRY_AFTER_S: Final = 1.0
MAX_RETRY_AFTER_S: Final = 60.0


class Room:
    """Counts who is in, and remembers how long those stayed who left."""

    def __init__(self) -> None:
        self.num_in = 0
        self._mean_stay_s: float | None = None

    def enter(self) -> None:
        """A request came in."""
        self.num_in += 1

    def leave(self, stay_s: float | None) -> None:
        """It left, after so long; None where that says nothing of how long a picture takes."""
        self.num_in -= 1
        if stay_s is not None:
            mean_s = stay_s if self._mean_stay_s is None else self._mean_stay_s
            self._mean_stay_s = mean_s + WEIGHT * (stay_s - mean_s)

    @property
    def retry_after_s(self) -> float:
        """Until somebody leaves, on average: the mean stay by the number who are in (Little, 1961)."""
        if self._mean_stay_s is None:
            return FIRST_GUESS_S
        return min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, self._mean_stay_s / max(1, self.num_in)))
