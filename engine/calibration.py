"""Measuring what work costs on the device at hand: a few shapes of every stage, timed at warm-up."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from engine.config import EngineConfig
from engine.cost_model import CostModel, Features, LinearCost, decode_features, step_features
from engine.profile import SIZE_STEP_PX, DrawnSize, ModelProfile
from engine.request import Reference
from engine.runner import FluxRunner, Row

MAX_REPEATS = 3

ENOUGH_S = 0.15
"""A shape is timed until it took this long, at least once: a slow device would be ready later, and what a single timing
misses is corrected by the first requests."""

SIDES = (0.5, 0.75, 1.0)
"""Sides of the pictures to time, in parts of the native size."""


def calibrated(
    runner: FluxRunner, profile: ModelProfile, config: EngineConfig, *, clock: Callable[[], float]
) -> CostModel:
    """Time every stage and fit its cost. Leaves nothing in the caches. Takes about two seconds."""

    def seconds(work: Callable[[], object]) -> float:
        """Median of a few; on a GPU after one that chooses this shape's kernels."""
        if config.device == "cuda":
            work()
        times: list[float] = []
        while len(times) < MAX_REPEATS and sum(times) < ENOUGH_S:
            runner.synchronize()
            started_s = clock()
            work()
            runner.synchronize()
            times.append(max(clock() - started_s, 1e-9))
        return statistics.median(times)

    small, middle, native = (_scaled(profile, side) for side in SIDES)
    text = runner.encode_prompt_anew("warm up")
    rows = {
        size: Row(
            tokens=runner.initial_tokens(0, size),
            position_ids=runner.position_ids(size),
            text=text,
            image_prompt=runner.black_prompt,
            sigma=0.5,
            guidance=3.5,
        )
        for size in (small, middle, native)
    }
    runner.velocity([rows[small]])  # the very first pass of a process takes its memory
    runner.decode(rows[small].tokens, small)
    steps: list[tuple[Features, float]] = []
    for sizes in _batches(small, middle, native, runner.num_txt, config):
        batch = [rows[size] for size in sizes]
        runner.record(batch)
        step_s = seconds(functools.partial(runner.velocity, batch))
        steps.append((step_features([runner.num_txt + size.num_tokens for size in sizes]), step_s))
    decodes = [
        (
            decode_features(size.num_pixels),
            seconds(functools.partial(runner.decode, rows[size].tokens, size)),
        )
        for size in (small, middle, native)
    ]
    crop = np.zeros((profile.clip_vision.image_size, profile.clip_vision.image_size, 3), np.uint8)
    return CostModel(
        step=LinearCost.fitted(steps),
        text=LinearCost.of(seconds(lambda: runner.encode_prompt_anew("warm up"))),
        vision=LinearCost.of(seconds(lambda: runner.encode_reference_anew(Reference(crop=crop, key="")))),
        decode=LinearCost.fitted(decodes),
    )


def _batches(
    small: DrawnSize, middle: DrawnSize, native: DrawnSize, num_txt: int, config: EngineConfig
) -> Iterator[Sequence[DrawnSize]]:
    """Single rows, equal rows and mixed ones: they tell rows, tokens and tokens² apart. None above the step's budget,
    except one picture of native size."""
    yield from ((small,), (middle,), (native,))
    for sizes in ((small,) * 2, (small,) * 4, (native,) * 2, (small, native), (small, small, middle)):
        num_tokens = sum(num_txt + size.num_tokens for size in sizes)
        if len(sizes) <= config.max_batch_samples and num_tokens <= config.max_batch_tokens:
            yield sizes


def _scaled(profile: ModelProfile, side: float) -> DrawnSize:
    policy = profile.size

    def scaled(native_px: int) -> int:
        return max(SIZE_STEP_PX, round(side * native_px / SIZE_STEP_PX) * SIZE_STEP_PX)

    return DrawnSize(width_px=scaled(policy.native_width_px), height_px=scaled(policy.native_height_px))
