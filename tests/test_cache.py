"""Laws of the byte-budget cache, against a model that is too simple to be wrong."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cache import ByteBudgetCache

Operation = tuple[str, int, int]  # get or put, key, size
OPERATIONS = st.lists(st.tuples(st.sampled_from(("get", "put")), st.integers(0, 6), st.integers(1, 40)), max_size=80)


class Model:
    """A list of (key, value, size), least recently used first."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.entries: list[tuple[int, int, int]] = []
        self.num_evictions = 0

    def get(self, key: int) -> int | None:
        for entry in self.entries:
            if entry[0] == key:
                self.entries.remove(entry)
                self.entries.append(entry)
                return entry[1]
        return None

    def put(self, key: int, value: int, size_bytes: int) -> None:
        self.entries = [entry for entry in self.entries if entry[0] != key]
        if size_bytes > self.budget_bytes:
            return
        self.entries.append((key, value, size_bytes))
        while sum(entry[2] for entry in self.entries) > self.budget_bytes:
            self.entries.pop(0)
            self.num_evictions += 1


@given(st.integers(0, 100), OPERATIONS)
def test_behaves_like_the_model_and_never_exceeds_its_budget(budget_bytes: int, operations: list[Operation]) -> None:
    cache: ByteBudgetCache[int, int] = ByteBudgetCache(budget_bytes)
    model = Model(budget_bytes)
    num_hits = num_gets = 0
    for value, (kind, key, size_bytes) in enumerate(operations):
        if kind == "get":
            found = cache.get(key)
            assert found == model.get(key)
            num_gets += 1
            num_hits += found is not None
        else:
            is_stored = cache.put(key, value, size_bytes=size_bytes)
            model.put(key, value, size_bytes)
            assert is_stored == (size_bytes <= budget_bytes)
        stats = cache.stats()
        assert stats.size_bytes == sum(entry[2] for entry in model.entries) <= budget_bytes
        assert (stats.num_entries, stats.num_evictions) == (len(model.entries), model.num_evictions)
        assert (stats.num_hits, stats.num_misses) == (num_hits, num_gets - num_hits)


def test_the_entry_used_longest_ago_goes_first() -> None:
    cache: ByteBudgetCache[str, int] = ByteBudgetCache(30)
    for value, key in enumerate("abc"):
        cache.put(key, value, size_bytes=10)
    cache.get("a")
    cache.put("d", 3, size_bytes=10)
    assert [cache.get(key) for key in "abcd"] == [0, None, 2, 3]


def test_an_entry_above_the_budget_is_not_stored_and_evicts_nobody_but_its_own_old_value() -> None:
    cache: ByteBudgetCache[str, int] = ByteBudgetCache(10)
    cache.put("a", 1, size_bytes=4)
    cache.put("b", 2, size_bytes=4)
    assert not cache.put("b", 3, size_bytes=11)
    assert (cache.get("a"), cache.get("b")) == (1, None)
    assert cache.stats().num_evictions == 0


def test_a_budget_of_zero_stores_nothing() -> None:
    cache: ByteBudgetCache[str, int] = ByteBudgetCache(0)
    assert not cache.put("a", 1, size_bytes=1)
    assert cache.get("a") is None
    assert cache.stats().num_entries == 0


def test_clear_drops_entries_and_keeps_counters() -> None:
    cache: ByteBudgetCache[str, int] = ByteBudgetCache(10)
    cache.put("a", 1, size_bytes=4)
    cache.get("a")
    cache.clear()
    stats = cache.stats()
    assert (stats.num_entries, stats.size_bytes, stats.num_hits) == (0, 0, 1)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="budget_bytes must not be negative, got -1"):
        ByteBudgetCache(-1)
    with pytest.raises(ValueError, match="size_bytes must be at least 1, got 0"):
        ByteBudgetCache[str, int](1).put("a", 1, size_bytes=0)


def test_counts_add_up_when_threads_meet() -> None:
    cache: ByteBudgetCache[int, int] = ByteBudgetCache(50)
    num_gets = 2000

    def work(seed: int) -> None:
        for step in range(num_gets):
            key = (seed * 31 + step * 7) % 20
            if cache.get(key) is None:
                cache.put(key, key, size_bytes=1 + key % 9)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    stats = cache.stats()
    assert stats.num_hits + stats.num_misses == 4 * num_gets
    held = [key for key in range(20) if cache.get(key) == key]
    assert stats.num_entries == len(held)
    assert stats.size_bytes == sum(1 + key % 9 for key in held) <= 50
