"""A thread-safe cache that is bounded by bytes, not by entries: prompts and pictures differ in size a thousandfold."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CacheStats:
    """What a cache did since it was made, and what it holds now. ``size_bytes`` never exceeds ``budget_bytes``."""

    num_hits: int = 0
    num_misses: int = 0
    num_evictions: int = 0
    num_entries: int = 0
    size_bytes: int = 0
    budget_bytes: int = 0


class ByteBudgetCache(Generic[K, V]):
    """Keeps the most recently used entries whose sizes add up to at most ``budget_bytes``.

    May be used from several threads. Values are handed out as they are, not copied: treat them as read-only.

    Args:
        budget_bytes: 0 stores nothing, so every ``get`` misses.
    """

    def __init__(self, budget_bytes: int) -> None:
        if budget_bytes < 0:
            raise ValueError(f"budget_bytes must not be negative, got {budget_bytes}")
        self._budget_bytes = budget_bytes
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()  # least recently used first
        self._size_bytes = 0
        self._num_hits = 0
        self._num_misses = 0
        self._num_evictions = 0
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value stored under ``key``, which becomes the most recently used; None where there is none."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self._num_misses += 1
                return None
            self._num_hits += 1
            self._entries.move_to_end(key)
            return entry[0]

    def __contains__(self, key: K) -> bool:
        """Whether a ``get`` would find something; changes neither order nor counters."""
        with self._lock:
            return key in self._entries

    def put(self, key: K, value: V, *, size_bytes: int) -> bool:
        """Store ``value``, in place of what ``key`` held, and evict what was used longest ago until all fits.

        Args:
            size_bytes: what the value costs, at least 1: entries that cost nothing would never be evicted.

        Returns:
            False where it alone exceeds the budget: it is not stored, and nothing else is evicted for it.
        """
        if size_bytes < 1:
            raise ValueError(f"size_bytes must be at least 1, got {size_bytes}")
        with self._lock:
            if (old := self._entries.pop(key, None)) is not None:
                self._size_bytes -= old[1]
            if size_bytes > self._budget_bytes:
                return False
            while self._size_bytes + size_bytes > self._budget_bytes:
                _, (_, evicted_bytes) = self._entries.popitem(last=False)
                self._size_bytes -= evicted_bytes
                self._num_evictions += 1
            self._entries[key] = (value, size_bytes)
            self._size_bytes += size_bytes
            return True

    def clear(self) -> None:
        """Drop every entry; the counters stay."""
        with self._lock:
            self._entries.clear()
            self._size_bytes = 0

    def stats(self) -> CacheStats:
        """Counters and size, all of one moment."""
        with self._lock:
            return CacheStats(
                num_hits=self._num_hits,
                num_misses=self._num_misses,
                num_evictions=self._num_evictions,
                num_entries=len(self._entries),
                size_bytes=self._size_bytes,
                budget_bytes=self._budget_bytes,
            )
