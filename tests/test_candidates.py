"""How many candidates are drawn, which one is the answer, and what is told of them on the way."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.request import MAX_SEED, StageSeconds
from serve_app.candidates import Candidate, CandidateProgress, LikenessWish, best_of, draw_candidates, seed_of
from serve_app.errors import SimilarityNotReachedError
from serve_app.stages import DrawEvent, DrawQueued, DrawRestarted, DrawResult, DrawStep

similarities = st.none() | st.floats(0.0, 1.0)


def candidate(index: int, similarity: float | None) -> Candidate:
    result = DrawResult(
        data=b"",
        drawn_width_px=16,
        drawn_height_px=16,
        stages=StageSeconds(),
        compress_s=0.0,
        device_s=1.0,
        device_name="CPU",
    )
    return Candidate(seed=index, result=result, draw_s=0.0, similarity=similarity, identity_s=0.0)


def drawn(wish: LikenessWish, scores: list[float | None]) -> tuple[tuple[Candidate, ...], int]:
    """The candidates, and how many were being drawn at the same time."""
    busy, most = 0, 0

    async def draw(index: int) -> Candidate:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0)
        busy -= 1
        return candidate(index, scores[index])

    return asyncio.run(draw_candidates(wish, draw)), most


def rank(similarity: float | None) -> float:
    return -1.0 if similarity is None else similarity


@given(st.lists(similarities, min_size=1, max_size=8))
def test_without_a_bar_all_are_drawn_at_once_and_the_best_is_the_answer(scores: list[float | None]) -> None:
    wish = LikenessWish(num_candidates=len(scores))
    candidates, most = drawn(wish, scores)
    assert [one.similarity for one in candidates] == scores
    assert most == len(scores)
    best = best_of(candidates, wish, cost_usd=0.0)
    assert rank(best.similarity) == max(rank(score) for score in scores)
    assert best.seed == [rank(score) for score in scores].index(rank(best.similarity)), "the first of equals"


@given(st.lists(similarities, min_size=1, max_size=8), st.floats(0.0, 1.0))
def test_with_a_bar_no_more_are_drawn_than_needed(scores: list[float | None], bar: float) -> None:
    wish = LikenessWish(num_candidates=len(scores), min_similarity=bar)
    candidates, most = drawn(wish, scores)
    reached = [score is not None and score >= bar for score in scores]
    assert len(candidates) == (reached.index(True) + 1 if any(reached) else len(scores))
    assert most == 1
    if any(reached):
        assert best_of(candidates, wish, cost_usd=0.0) == candidates[-1]
    else:
        with pytest.raises(SimilarityNotReachedError) as caught:
            best_of(candidates, wish, cost_usd=0.25)
        assert caught.value.similarities == dict(enumerate(scores))
        assert rank(caught.value.best_similarity) == max(rank(score) for score in scores)
        assert caught.value.cost_usd == 0.25


def test_the_error_says_what_was_reached_and_survives_a_process_border() -> None:
    scores: Mapping[int, float | None] = {42: 0.61, 43: None}
    error = SimilarityNotReachedError(0.7, scores, 0.01)
    assert str(error).startswith("min_similarity 0.7 was not reached: of 2 pictures drawn the best has 0.61; ask for")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert "of 1 picture drawn none shows a face" in str(SimilarityNotReachedError(0.0, {42: None}, 0.01))


def test_what_ends_one_ends_all() -> None:
    ended = []

    async def draw(index: int) -> Candidate:
        if index == 2:
            raise RuntimeError("broken")
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(index)
        raise AssertionError

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(draw_candidates(LikenessWish(num_candidates=4), draw))
    assert sorted(ended) == [0, 1, 3]


def test_seeds_follow_each_other_and_stay_seeds() -> None:
    assert [seed_of(42, index) for index in range(3)] == [42, 43, 44]
    assert [seed_of(MAX_SEED, index) for index in range(3)] == [MAX_SEED, 0, 1]


def test_what_needs_measuring() -> None:
    assert not LikenessWish().is_measured
    assert LikenessWish(is_scored=True).is_measured and not LikenessWish(is_scored=True).is_choosy
    assert LikenessWish(num_candidates=2).is_choosy and LikenessWish(num_candidates=2).is_at_once
    assert LikenessWish(min_similarity=0.0).is_choosy and not LikenessWish(min_similarity=0.0).is_at_once


def told(wish: LikenessWish, *events: tuple[int, DrawEvent]) -> list[DrawEvent]:
    heard: list[DrawEvent] = []
    progress = CandidateProgress(heard.append, wish)
    for index, event in events:
        progress.listener(index)(event)
    return heard


def step(step: int, remaining_s: float, num_steps: int = 4) -> DrawStep:
    return DrawStep(step=step, num_steps=num_steps, remaining_s=remaining_s)


QUEUED = DrawQueued(position=2, predicted_wait_s=1.0, predicted_device_s=3.0)


def test_one_candidate_is_told_as_it_is() -> None:
    events: list[DrawEvent] = [QUEUED, step(1, 3.0), DrawRestarted(), step(1, 3.0), step(4, 0.0)]
    assert told(LikenessWish(is_scored=True), *((0, event) for event in events)) == events


def test_candidates_at_once_are_told_as_one_drawing_that_ends_with_the_slowest() -> None:
    heard = told(
        LikenessWish(num_candidates=2),
        *((0, QUEUED), (1, QUEUED), (0, step(1, 3.0)), (1, step(1, 6.0)), (0, step(4, 0.0)), (1, step(4, 0.0))),
    )
    assert heard == [
        DrawQueued(position=2, predicted_wait_s=1.0, predicted_device_s=6.0),
        *(step(1, 3.0, 8), step(2, 6.0, 8), step(5, 6.0, 8), step(8, 0.0, 8)),
    ]


def test_candidates_one_after_another_are_told_as_if_all_will_be_drawn() -> None:
    heard = told(
        LikenessWish(num_candidates=3, min_similarity=0.5),
        *((0, QUEUED), (0, step(2, 2.0)), (0, step(4, 0.0)), (1, QUEUED), (1, step(1, 6.0)), (2, step(4, 0.0))),
    )
    assert heard == [
        DrawQueued(position=2, predicted_wait_s=1.0, predicted_device_s=9.0),
        *(step(2, 2.0 + 2 * 4.0, 12), step(4, 2 * 4.0, 12), step(5, 6.0 + 8.0, 12), step(9, 0.0, 12)),
    ]


def test_a_candidate_that_begins_again_takes_its_steps_back() -> None:
    heard = told(
        LikenessWish(num_candidates=2), (0, step(3, 1.0)), (1, step(2, 2.0)), (0, DrawRestarted()), (0, step(1, 3.0))
    )
    assert [event.step for event in heard if isinstance(event, DrawStep)] == [3, 5, 3]
    assert DrawRestarted() in heard
