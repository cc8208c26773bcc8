"""Recorded passes: which shapes, how many, and what happens when recording fails. That no request's face stays in a
recording is held by test_mixed_steps.py, whose crowds all go through recordings, too."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.model.image_prompt import ImagePrompt
from engine.model.packing import Packing
from engine.runtime.recorded import MAX_SHAPES_COUNTED, NUM_PASSES_BEFORE, RecordedPasses, Run
from tests.one_memory import on_one_memory

NUM_TXT, MAX_TOKENS = 3, 2000


class Passes:
    """A forward pass that is a sum, recorded passes before it, and how often it was recorded."""

    def __init__(self, max_recordings: int = 2, recorder: Callable[[Run], Run] = on_one_memory) -> None:
        self.num_recorded = 0
        self._recorder = recorder
        self.passes = RecordedPasses(
            self._forward, max_recordings=max_recordings, max_tokens=MAX_TOKENS, recorder=self._record
        )

    def _forward(self, *inputs: Tensor, packing: Packing, image_prompt: ImagePrompt) -> Tensor:
        face = (image_prompt.keys + image_prompt.values).sum() * image_prompt.scale.sum()
        return sum(inputs, torch.zeros(())) + face + sum(packing.num_img)

    def _record(self, run: Run) -> Run:
        self.num_recorded += 1
        return self._recorder(run)

    def velocity(self, number: float, num_img: tuple[int, ...] = (4,), *, is_known: bool = False) -> Tensor | None:
        inputs = tuple(torch.full((1, sum(num_img), 2), number + i) for i in range(6))
        rows = torch.full((len(num_img), 1, 3), number)
        prompt = ImagePrompt(keys=rows, values=rows + 1, scale=torch.full((len(num_img),), number))
        packing = Packing(num_txt=NUM_TXT, num_img=num_img)
        if is_known:
            self.passes.record(*inputs, packing=packing, image_prompt=prompt)
            return None
        found = self.passes(*inputs, packing=packing, image_prompt=prompt)
        assert torch.equal(found, self._forward(*inputs, packing=packing, image_prompt=prompt))
        return found


def test_a_shape_that_comes_often_is_recorded_and_others_are_not() -> None:
    made = Passes()
    for number in range(NUM_PASSES_BEFORE - 1):
        made.velocity(number)
        made.velocity(number, (number + 5,))
    assert made.passes.num_recordings == 0
    for number in range(5):
        made.velocity(number)
    assert (made.passes.num_recordings, made.num_recorded) == (1, 1)


def test_as_many_tokens_split_otherwise_are_another_shape() -> None:
    made = Passes(max_recordings=4)
    splits = [(4, 8), (8, 4), (6, 6), (12,)]
    for split in splits:
        made.velocity(1.0, split, is_known=True)
    assert made.num_recorded == len(splits)
    for number, split in enumerate(splits * 2):
        made.velocity(number, split)


def test_a_result_is_the_callers_own() -> None:
    made = Passes()
    made.velocity(1.0, is_known=True)
    first = made.velocity(1.0)
    assert first is not None
    kept = first.clone()
    made.velocity(2.0)
    assert torch.equal(first, kept)


def test_those_used_last_are_kept() -> None:
    made = Passes(max_recordings=2)
    for split in ((4,), (5,)):
        made.velocity(1.0, split, is_known=True)
    made.velocity(1.0, (4,))
    made.velocity(1.0, (6,), is_known=True)  # in the place of (5,)
    assert made.passes.num_recordings == 2
    made.velocity(1.0, (4,), is_known=True)
    assert made.num_recorded == 3
    made.velocity(1.0, (5,), is_known=True)
    assert made.num_recorded == 4


def test_none_is_none() -> None:
    made = Passes(max_recordings=0)
    made.velocity(1.0, is_known=True)
    for number in range(2 * NUM_PASSES_BEFORE):
        made.velocity(number)
    assert made.num_recorded == 0


def test_long_steps_are_not_recorded() -> None:
    made = Passes()
    longest = MAX_TOKENS - 2 * NUM_TXT
    for split in ((longest - 1, 2), (longest, 7), (MAX_TOKENS,)):
        made.velocity(1.0, split, is_known=True)
        for number in range(NUM_PASSES_BEFORE + 1):
            made.velocity(number, split)
    assert made.num_recorded == 0
    made.velocity(1.0, (longest - 1, 1), is_known=True)
    assert made.num_recorded == 1


def test_counting_shapes_takes_bounded_memory() -> None:
    made = Passes()
    for count in range(MAX_SHAPES_COUNTED + 10):
        made.velocity(1.0, (count + 1,))
    assert len(made.passes._counts) <= MAX_SHAPES_COUNTED


@pytest.mark.parametrize("error", [RuntimeError("capture"), torch.OutOfMemoryError("no memory")])
def test_what_cannot_be_recorded_is_drawn_all_the_same(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    is_failing = False

    def recorder(run: Run) -> Run:
        if is_failing:
            raise error
        return on_one_memory(run)

    made = Passes(recorder=recorder)
    made.velocity(1.0, is_known=True)
    is_failing = True
    with caplog.at_level(logging.WARNING):
        for number in range(3 * NUM_PASSES_BEFORE):
            made.velocity(number, (7,))
    assert [record.message for record in caplog.records] == [
        f"no recorded passes any more, small pictures take longer: {error}"
    ]
    made.velocity(3.0)
    assert made.passes.num_recordings == 0  # their memory, too, is given back
