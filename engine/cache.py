"""A least-recently-used cache that counts bytes, because its entries differ a thousandfold in size."""

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
    """Counters since the cache was made, and what it holds now."""

    hits: int
    misses: int
    evictions: int
    num_entries: int
    num_bytes: int


class ByteBudgetCache(Generic[K, V]):
    """Holds at most ``max_bytes`` of values; the least recently used go first. Safe to use from several threads.

    A value larger than the whole budget is not stored, so a budget of 0 is a cache that is switched off.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, got {max_bytes}")
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._num_bytes = self._hits = self._misses = self._evictions = 0

    def get(self, key: K) -> V | None:
        """The value, which becomes the most recently used; None where it is not here."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self._misses += 1
                return None
            self._hits += 1
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: K, value: V, *, num_bytes: int) -> None:
        """Store a value of ``num_bytes``, in place of an earlier one under the same key."""
        if num_bytes < 0:
            raise ValueError(f"num_bytes must not be negative, got {num_bytes}")
        with self._lock:
            earlier = self._entries.pop(key, None)
            if earlier is not None:
                self._num_bytes -= earlier[1]
            if num_bytes > self._max_bytes:
                return
            self._entries[key] = (value, num_bytes)
            self._num_bytes += num_bytes
            while self._num_bytes > self._max_bytes:
                _, (_, freed) = self._entries.popitem(last=False)
                self._num_bytes -= freed
                self._evictions += 1

    def stats(self) -> CacheStats:
        """Counters and current size."""
        with self._lock:
            return CacheStats(
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                num_entries=len(self._entries),
                num_bytes=self._num_bytes,
            )
