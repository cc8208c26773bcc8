"""Laws of the cost model: what it fits, what it learns, and what it never does."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cost_meter import CostFollower, CostMeter
from engine.cost_model import MAX_CORRECTION, CostModel, LinearCost, RequestWork, step_features

SHAPES = ((768,), (1536,), (4608,), (768, 768), (768,) * 4, (4608, 4608), (768, 4608), (768, 1536, 1536))
COEFFICIENTS = st.tuples(st.floats(0, 0.1), st.floats(0, 0.01), st.floats(1e-6, 1e-4), st.floats(0, 1e-8))
ROWS = st.lists(st.integers(1, 10_000), min_size=1, max_size=8)

MODEL = CostModel(
    step=LinearCost.of(0.01, 0.001, 3e-5, 7e-10),
    text=LinearCost.of(0.04),
    vision=LinearCost.of(0.02),
    decode=LinearCost.of(0.005, 8e-8, 0.0),
)
WORK = RequestWork(
    num_rows=2, num_tokens_per_row=1536, num_steps=20, num_pixels=512 * 512, num_prompts=2, num_references=1
)


@given(COEFFICIENTS, ROWS)
def test_exact_timings_are_fitted_exactly(coefficients: tuple[float, ...], rows: list[int]) -> None:
    truth = LinearCost.of(*coefficients)
    fitted = LinearCost.fitted((step_features(shape), truth.seconds(step_features(shape))) for shape in SHAPES)
    features = step_features(rows)
    assert fitted.seconds(features) == pytest.approx(truth.seconds(features), rel=1e-3)


@given(st.lists(st.floats(1e-4, 10.0), min_size=len(SHAPES), max_size=len(SHAPES)))
def test_no_timing_makes_a_cost_negative_and_none_is_fitted_worse_than_by_a_constant(times: list[float]) -> None:
    samples = [(step_features(shape), seconds) for shape, seconds in zip(SHAPES, times, strict=True)]
    fitted = LinearCost.fitted(samples)
    assert min(fitted.calibrated) >= 0.0

    def error(cost: LinearCost) -> float:
        return sum((cost.seconds(features) / seconds - 1.0) ** 2 for features, seconds in samples)

    constant = LinearCost.of(sum(1 / s for s in times) / sum(1 / s**2 for s in times), 0.0, 0.0, 0.0)
    assert error(fitted) <= error(constant) * (1 + 1e-6)


@given(COEFFICIENTS, ROWS, ROWS)
def test_more_costs_more_and_together_is_never_dearer_than_apart(
    coefficients: tuple[float, ...], some: list[int], others: list[int]
) -> None:
    model = dataclasses.replace(MODEL, step=LinearCost.of(*coefficients))
    apart = model.step_seconds(some) + model.step_seconds(others)
    assert model.step_seconds(some) <= model.step_seconds([*some, *others]) <= apart * (1 + 1e-12)


@given(COEFFICIENTS, ROWS, st.floats(1e-6, 1e6))
def test_one_observation_moves_the_prediction_toward_it_by_a_bounded_part(
    coefficients: tuple[float, ...], rows: list[int], ratio: float
) -> None:
    cost = LinearCost.of(*coefficients)
    features = step_features(rows)
    before = cost.seconds(features)
    after = CostFollower(4).corrected(cost, features, before * ratio).seconds(features)
    assert 1 / 3 <= after / before <= 3.0, "a stall of a million times does not spoil the model"
    assert (after - before) * (ratio - 1.0) >= -1e-12
    assert abs(math.log(after / (before * ratio))) <= abs(math.log(ratio)) + 1e-9, "it does not overshoot"


def test_a_drift_is_followed_and_noise_is_not() -> None:
    rng = random.Random(0)
    meter = CostMeter(MODEL)
    for rows in itertools.islice(itertools.cycle(SHAPES), 40):
        meter.observe_step(rows, 2.5 * MODEL.step_seconds(rows) * rng.lognormvariate(0.0, 0.05))
    for rows in SHAPES:
        assert meter.model.step_seconds(rows) == pytest.approx(2.5 * MODEL.step_seconds(rows), rel=0.1)


def test_a_drift_seen_at_one_size_is_expected_at_others() -> None:
    meter = CostMeter(MODEL)
    for _ in range(200):
        meter.observe_step((4608,), 2.0 * MODEL.step_seconds((4608,)))
    assert meter.model.step_seconds((768,)) == pytest.approx(2.0 * MODEL.step_seconds((768,)), rel=0.2)


def test_a_term_that_calibration_missed_by_a_factor_is_learned_apart_from_the_others() -> None:
    truth = dataclasses.replace(MODEL, step=LinearCost.of(0.03, 0.001, 3e-5, 7e-10))
    meter = CostMeter(MODEL)
    for rows in itertools.islice(itertools.cycle(SHAPES), 200):
        meter.observe_step(rows, truth.step_seconds(rows))
    for rows in ((768,), (4608, 4608)):
        assert meter.model.step_seconds(rows) == pytest.approx(truth.step_seconds(rows), rel=0.05)


def test_corrections_end_at_their_bound() -> None:
    cost, follower = LinearCost.of(1e-3), CostFollower(1)
    for _ in range(200):
        cost = follower.corrected(cost, (1.0,), 1e9)
    assert cost.seconds((1.0,)) == pytest.approx(MAX_CORRECTION * 1e-3)


def test_nothing_measured_or_nothing_predicted_teaches_nothing() -> None:
    assert CostFollower(4).corrected(MODEL.step, step_features((100,)), 0.0) is MODEL.step
    free = LinearCost.of(0.0)
    assert CostFollower(1).corrected(free, (1.0,), 1.0) is free


def test_calibrating_again_forgets_what_was_learned() -> None:
    meter = CostMeter(MODEL)
    meter.observe_step((768,), 1.0)
    assert meter.model != MODEL
    meter.calibrate(MODEL)
    assert meter.model == MODEL


def test_the_error_is_the_median_of_what_was_predicted_before_each_step() -> None:
    meter = CostMeter(MODEL)
    assert meter.median_error is None
    meter.observe_step((768,), MODEL.step_seconds((768,)) / 1.1)
    assert meter.median_error == pytest.approx(0.1)
    for _ in range(300):
        meter.observe_step((768,), meter.model.step_seconds((768,)))
    assert meter.median_error == pytest.approx(0.0, abs=1e-12), "the last 256 count"


def test_a_request_is_priced_by_its_stages() -> None:
    step_s, decode_s = MODEL.step_seconds((1536, 1536)), MODEL.decode_seconds(512 * 512)
    assert MODEL.request_seconds(WORK) == pytest.approx(2 * 0.04 + 0.02 + 20 * step_s + decode_s)
    assert MODEL.price(WORK).seconds_from(5) == pytest.approx(5 * step_s + decode_s)
    assert MODEL.price(WORK).seconds_from(0) == pytest.approx(decode_s)
    cached = dataclasses.replace(WORK, num_prompts=0, num_references=0)
    assert MODEL.request_seconds(cached) == MODEL.price(cached).seconds_from(cached.num_steps)


def test_stages_are_corrected_each_on_its_own() -> None:
    meter = CostMeter(MODEL)
    meter.observe_text(2, 1.0)
    meter.observe_vision(1, 1.0)
    meter.observe_decode(512 * 512, 1.0)
    assert meter.model.step == MODEL.step
    assert meter.model.text_seconds(1) > MODEL.text_seconds(1)
    assert meter.model.vision_seconds(1) > MODEL.vision_seconds(1)
    assert meter.model.decode_seconds(512 * 512) > MODEL.decode_seconds(512 * 512)
    assert meter.median_error is None, "steps alone count"


def test_a_model_survives_json() -> None:
    meter = CostMeter(MODEL)
    meter.observe_step((768,), 1.0)
    assert CostModel.from_dict(json.loads(json.dumps(meter.model.to_dict()))) == meter.model


@pytest.mark.parametrize(
    "change",
    [
        {"step": {"calibrated": [1.0], "corrections": [1.0]}},
        {"text": {"calibrated": [-1.0], "corrections": [1.0]}},
        {"text": {"calibrated": [1.0], "corrections": [100.0]}},
        {"text": {"calibrated": [1.0], "corrections": []}},
        {"text": {"calibrated": [float("nan")], "corrections": [1.0]}},
        {"text": {"calibrated": [1.0]}},
        {"text": 3},
        {"colour": {"calibrated": [1.0], "corrections": [1.0]}},
    ],
    ids=["size", "negative", "unbounded", "lengths", "nan", "missing", "type", "unknown"],
)
def test_anything_else_is_no_model(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"coefficient|correction|not a cost model"):
        CostModel.from_dict({**MODEL.to_dict(), **change})


def test_a_fit_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        LinearCost.fitted([])
