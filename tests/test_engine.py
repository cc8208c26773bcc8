"""The engine's laws, on real (tiny) networks loaded from files through the production loader."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.cost_meter import CostMeter
from engine.cost_model import CostModel, LinearCost, RequestWork
from engine.engine import FluxEngine, load_engine
from engine.errors import (
    DeadlineExceededError,
    EngineBusyError,
    EngineStoppedError,
    InvalidRequestError,
    NumericalError,
    OutOfDeviceMemoryError,
    RequestCancelledError,
)
from engine.request import EngineEvent, Failed, Finished, ImageRequest, Reference, StepProgress
from engine.runner import Row
from engine.weights.untrained import write_untrained
from tests.tiny import tiny_profile

PROFILE = tiny_profile()

PIXEL_TOLERANCE = 2
"""Grey levels by which a picture drawn in company may differ from the same alone. Matrix products of another batch
size add up in another order, which float32 shows in the last digits; uint8 rounding makes at most a level or two."""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny-model")
    write_untrained(PROFILE, str(folder), dtype="float32")
    return str(folder)


@pytest.fixture
def config(model_dir: str) -> EngineConfig:
    return EngineConfig(profile=PROFILE, model_dir=model_dir, cpu_threads=1)


@pytest.fixture
def engine(config: EngineConfig) -> FluxEngine:
    return load_engine(config)


def reference(seed: int) -> Reference:
    rng = np.random.default_rng(seed)
    return Reference(embedding=rng.standard_normal(20).astype(np.float32), key=f"face-{seed}")


def request(seed: int, **changes: Any) -> ImageRequest:
    base = ImageRequest(
        request_id=f"r{seed}",
        prompt=f"person number {seed}",
        reference=reference(seed),
        width_px=64,
        height_px=64,
        num_steps=3,
        seed=seed,
    )
    return dataclasses.replace(base, **changes)


MIX = [
    request(0),
    request(1, cfg=3.0, negative_prompt="hat", num_steps=4),
    request(2, width_px=96, height_px=48, ip_scale=0.3),
    request(3, guidance=1.0, scheduler="flux", num_steps=2),
    request(4, reference=None),
    request(5, cfg=1.5, width_px=32, height_px=128),
    request(6, ip_scale=0.0),
    request(7, num_steps=1),
]
"""Requests that differ in everything a request may choose."""


def run(engine: FluxEngine) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    while engine.has_work:
        events += engine.step()
    return events


def draw(engine: FluxEngine, *requests: ImageRequest) -> dict[str, Finished]:
    for item in requests:
        engine.submit(item)
    events = run(engine)
    failures = [event for event in events if isinstance(event, Failed)]
    assert not failures
    return {event.request_id: event for event in events if isinstance(event, Finished)}


def difference(a: Finished, b: Finished) -> int:
    return int(np.abs(a.image.astype(int) - b.image.astype(int)).max())


def test_same_request_same_picture_to_the_bit(engine: FluxEngine) -> None:
    first = draw(engine, MIX[1])["r1"]
    again = draw(engine, MIX[1])["r1"]
    assert np.array_equal(first.image, again.image)
    assert first.image.shape == (64, 64, 3)
    assert first.image.std() > 5, "a flat picture would make this test empty"


def test_pictures_drawn_in_company_equal_those_drawn_alone(engine: FluxEngine, config: EngineConfig) -> None:
    alone = {item.request_id: draw(engine, item)[item.request_id] for item in MIX}
    for budget in (16, 3):
        crowd = load_engine(dataclasses.replace(config, max_batch_samples=budget))
        together = draw(crowd, *MIX)
        assert together.keys() == alone.keys()
        for request_id, picture in together.items():
            assert difference(picture, alone[request_id]) <= PIXEL_TOLERANCE, request_id


def test_a_request_that_joins_midway_changes_nothing(engine: FluxEngine) -> None:
    alone = draw(engine, MIX[0])["r0"]
    engine.submit(MIX[0])
    events = engine.step()
    for item in MIX[2:5]:
        engine.submit(item)
    events += run(engine)
    joined = next(event for event in events if isinstance(event, Finished) and event.request_id == "r0")
    assert difference(joined, alone) <= PIXEL_TOLERANCE


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "someone else"},
        {"seed": 99},
        {"reference": reference(99)},
        {"ip_scale": 0.2},
        {"guidance": 1.0},
        {"num_steps": 4},
        {"cfg": 4.0},
        {"scheduler": "flux"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_everything_a_request_chooses_matters(engine: FluxEngine, change: dict[str, Any]) -> None:
    base = draw(engine, MIX[0])["r0"]
    changed = draw(engine, dataclasses.replace(MIX[0], **change))["r0"]
    assert difference(base, changed) > 2 * PIXEL_TOLERANCE


def test_negative_prompt_matters_where_cfg_is_on_and_only_there(engine: FluxEngine) -> None:
    for cfg, is_used in ((1.0, False), (3.0, True)):
        plain = draw(engine, request(0, cfg=cfg))["r0"]
        negated = draw(engine, request(0, cfg=cfg, negative_prompt="glasses"))["r0"]
        assert (difference(plain, negated) > 2 * PIXEL_TOLERANCE) == is_used


def test_swapping_one_face_changes_that_picture_alone(engine: FluxEngine) -> None:
    crowd = [request(seed) for seed in range(4)]
    before = draw(engine, *crowd)
    for changed in range(4):
        swapped = [dataclasses.replace(r, reference=reference(50)) if i == changed else r for i, r in enumerate(crowd)]
        after = draw(engine, *swapped)
        for index in range(4):
            is_same = np.array_equal(before[f"r{index}"].image, after[f"r{index}"].image)
            assert is_same == (index != changed)


def test_caches_change_no_picture_and_are_used(engine: FluxEngine, config: EngineConfig) -> None:
    cold = load_engine(dataclasses.replace(config, text_cache_bytes=0, image_cache_bytes=0))
    warm_up_picture = draw(engine, MIX[1])["r1"]
    assert np.array_equal(draw(engine, MIX[1])["r1"].image, warm_up_picture.image)
    assert np.array_equal(draw(cold, MIX[1])["r1"].image, warm_up_picture.image)
    stats = engine.stats()
    assert (stats.text_cache.num_hits, stats.text_cache.num_misses) == (2, 2), "prompt and negative prompt"
    assert (stats.image_cache.num_hits, stats.image_cache.num_misses) == (1, 1)
    assert 0 < stats.text_cache.size_bytes <= stats.text_cache.budget_bytes
    assert cold.stats().text_cache.size_bytes == cold.stats().image_cache.size_bytes == 0


def test_what_one_model_encoded_never_reaches_another(engine: FluxEngine, tmp_path: Path) -> None:
    write_untrained(PROFILE, str(tmp_path), dtype="float32", seed=7)
    other = load_engine(EngineConfig(profile=PROFILE, model_dir=str(tmp_path), cpu_threads=1))
    alone = draw(other, MIX[1])["r1"]
    draw(engine, MIX[1])
    again = load_engine(EngineConfig(profile=PROFILE, model_dir=str(tmp_path), cpu_threads=1))
    assert np.array_equal(draw(again, MIX[1])["r1"].image, alone.image)
    assert again.stats().text_cache.num_hits == 0


def test_a_crop_is_encoded_by_the_engine(engine: FluxEngine) -> None:
    rng = np.random.default_rng(0)
    crop = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    crop.flags.writeable = False  # as arrays arrive through Ray
    from_crop = draw(engine, request(0, reference=Reference(crop=crop, key="c")))["r0"]
    embedding = engine._runner._networks.vision.encode(crop[None])[0]
    from_embedding = draw(engine, request(0, reference=Reference(embedding=embedding, key="c")))["r0"]
    assert np.array_equal(from_crop.image, from_embedding.image)


def test_progress_counts_every_step_once_and_shares_of_a_step_add_up(engine: FluxEngine) -> None:
    for item in MIX:
        engine.submit(item)
    events = run(engine)
    for item in MIX:
        steps = [e.step for e in events if isinstance(e, StepProgress) and e.request_id == item.request_id]
        assert steps == list(range(1, item.num_steps + 1))
    pictures = [event for event in events if isinstance(event, Finished)]
    stats = engine.stats()
    assert sum(picture.device_s for picture in pictures) == pytest.approx(stats.device_s)
    assert stats.num_sample_steps == sum(item.num_steps for item in MIX)
    assert stats.num_finished == len(MIX)
    assert stats.is_conserved()
    engine.check()


def test_cancel_takes_effect_before_the_next_step(engine: FluxEngine) -> None:
    engine.submit(request(0, num_steps=50))
    engine.submit(request(1))
    engine.step()
    assert engine.cancel("r0")
    events = engine.step()
    assert isinstance(events[0], Failed)
    assert isinstance(events[0].error, RequestCancelledError)
    assert all(event.request_id == "r1" for event in events[1:])
    run(engine)
    assert not engine.cancel("r0"), "it is gone"
    stats = engine.stats()
    assert (stats.num_cancelled, stats.num_finished) == (1, 1)
    assert stats.is_conserved()


def test_a_budget_smaller_than_a_request_still_serves_it(config: EngineConfig) -> None:
    narrow = load_engine(dataclasses.replace(config, max_batch_tokens=1))
    assert len(draw(narrow, *MIX[:3])) == 3


def test_waiting_requests_are_bounded(config: EngineConfig) -> None:
    small = load_engine(dataclasses.replace(config, max_waiting=2))
    small.submit(request(0))
    small.submit(request(1))
    with pytest.raises(EngineBusyError):
        small.submit(request(2))
    assert len(draw(small)) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width_px": 512}, "width must be a multiple of 16 between 32 and 256"),
        ({"num_steps": 101}, "steps must be at most 100, got 101"),
        ({"cfg": 31.0}, "cfg must be at most 30.0"),
        ({"prompt": "x" * 4001}, "prompt must have at most 4000 characters, got 4001"),
        ({"reference": Reference(embedding=np.ones(7, np.float32), key="k")}, "expected (20,)"),
    ],
)
def test_bad_requests_end_alone(engine: FluxEngine, change: dict[str, Any], words: str) -> None:
    bad = dataclasses.replace(request(0), **change)
    engine.submit(request(1))
    try:
        engine.submit(bad)
        failure = next(event.error for event in run(engine) if isinstance(event, Failed))
    except InvalidRequestError as error:
        failure = error
    assert isinstance(failure, InvalidRequestError)
    assert words in str(failure)
    assert draw(engine, request(2))
    assert engine.stats().is_conserved()


def test_twice_the_same_id_is_refused(engine: FluxEngine) -> None:
    engine.submit(request(0))
    with pytest.raises(InvalidRequestError, match="already in the engine"):
        engine.submit(request(1, request_id="r0"))


def test_out_of_memory_ends_the_request_that_does_not_fit(engine: FluxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = draw(engine, request(1))["r1"]
    velocity = engine._runner.velocity

    def small_device(rows: Sequence[Row]) -> tuple[Tensor, ...]:
        if sum(len(row.tokens) for row in rows) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return velocity(rows)

    monkeypatch.setattr(engine._runner, "velocity", small_device)
    for item in (request(0, width_px=96, height_px=96), request(1), request(2)):
        engine.submit(item)
    events = run(engine)
    failed = [event for event in events if isinstance(event, Failed)]
    finished = {event.request_id: event for event in events if isinstance(event, Finished)}
    assert [event.request_id for event in failed] == ["r0"]
    assert isinstance(failed[0].error, OutOfDeviceMemoryError)
    assert finished.keys() == {"r1", "r2"}, "they fit one by one"
    assert difference(finished["r1"], alone) <= PIXEL_TOLERANCE
    engine.check()


def test_infinite_values_are_an_error_not_a_picture(engine: FluxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    velocity = engine._runner.velocity
    monkeypatch.setattr(engine._runner, "velocity", lambda rows: tuple(v * torch.inf for v in velocity(rows)))
    engine.submit(request(0))
    failure = run(engine)[-1]
    assert isinstance(failure, Failed)
    assert isinstance(failure.error, NumericalError)


def test_a_broken_step_stops_the_engine_for_good(engine: FluxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(rows: Sequence[Row]) -> tuple[Tensor, ...]:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(engine._runner, "velocity", broken)
    engine.submit(request(0))
    with pytest.raises(EngineStoppedError):
        engine.step()
    with pytest.raises(EngineStoppedError):
        engine.submit(request(1))
    with pytest.raises(EngineStoppedError):
        engine.check()


def test_closing_ends_everyone(engine: FluxEngine) -> None:
    engine.submit(request(0))
    engine.step()
    engine.submit(request(1))
    engine.close()
    ended = engine.step()
    assert {event.request_id for event in ended} == {"r0", "r1"}
    assert all(isinstance(event, Failed) and isinstance(event.error, EngineStoppedError) for event in ended)
    assert not engine.has_work


COST = CostModel(
    step=LinearCost.of(0.02, 0.001, 1e-4, 1e-7),
    text=LinearCost.of(0.3),
    vision=LinearCost.of(0.2),
    decode=LinearCost.of(0.01, 1e-6, 0.0),
)


def test_warm_up_measures_what_work_costs_and_leaves_no_other_trace(
    engine: FluxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    runner = engine._runner

    def takes(name: str, seconds: Callable[..., float]) -> None:
        work = getattr(runner, name)

        def timed(*arguments: object) -> object:
            now[0] += seconds(*arguments)
            return work(*arguments)

        monkeypatch.setattr(runner, name, timed)

    takes("velocity", lambda rows: COST.step_seconds([runner.num_txt + len(row.tokens) for row in rows]))
    takes("decode", lambda tokens, size: COST.decode_seconds(size.width_px * size.height_px))
    takes("encode_prompt_anew", lambda prompt: COST.text_seconds(1))
    takes("encode_reference_anew", lambda reference: COST.vision_seconds(1))
    monkeypatch.setattr(engine, "_clock", lambda: now[0])
    before = engine.stats()
    engine.warm_up()
    assert engine.stats() == before
    found = engine.cost_model
    for tokens in ([28], [28] * 8, [268], [20, 76, 268]):
        assert found.step_seconds(tokens) == pytest.approx(COST.step_seconds(tokens), rel=1e-3)
    assert found.decode_seconds(128 * 128) == pytest.approx(COST.decode_seconds(128 * 128), rel=1e-3)
    assert (found.text_seconds(1), found.vision_seconds(1)) == pytest.approx((0.3, 0.2))


def test_prices_follow_size_steps_guidance_and_what_is_cached(config: EngineConfig) -> None:
    engine = FluxEngine(config, load_engine(config)._runner, meter=CostMeter(COST))

    def price_s(**changes: object) -> float:
        queued = engine.submit(request(0, **changes))
        engine.cancel("r0")
        engine.step()
        return queued.predicted_device_s

    plain_s = price_s()
    assert price_s(num_steps=6) > plain_s
    assert price_s(width_px=128) > plain_s
    assert price_s(cfg=3.0) > plain_s
    crop = Reference(crop=np.zeros((224, 224, 3), np.uint8), key="crop")
    with_crop_s = price_s(reference=crop)
    assert with_crop_s > plain_s
    draw(engine, request(0, reference=crop))
    model = engine.cost_model
    encode_s = model.text_seconds(1) + model.vision_seconds(1)
    work_s = model.request_seconds(_work(num_steps=3))
    assert price_s(reference=crop) == pytest.approx(work_s)
    assert price_s(prompt="new", reference=dataclasses.replace(crop, key="other")) == pytest.approx(work_s + encode_s)


def _work(*, num_steps: int) -> RequestWork:
    return RequestWork(num_rows=1, num_tokens_per_row=28, num_steps=num_steps, num_pixels=64 * 64, num_prompts=0)


def test_stages_add_up_to_what_the_device_did(engine: FluxEngine) -> None:
    draw(engine, *MIX)
    stats = engine.stats()
    stages = (stats.text_s, stats.vision_s, stats.denoise_s, stats.decode_s)
    assert min(stages) > 0.0
    assert sum(stages) == pytest.approx(stats.device_s)
    assert stats.queued_device_s == 0.0
    assert stats.cost_model_error is not None
    assert 0 < stats.num_step_tokens <= stats.num_steps * stats.max_step_tokens


def test_who_is_too_late_ends_and_what_it_took_is_counted_as_wasted(model_dir: str) -> None:
    now = [0.0]
    config = EngineConfig(profile=PROFILE, model_dir=model_dir, cpu_threads=1, policy="static_batches")
    engine = FluxEngine(config, load_engine(config)._runner, clock=lambda: now[0])
    queued = engine.submit(request(0, num_steps=9, max_wait_s=5.0))
    engine.submit(request(1, num_steps=9))
    assert queued.predicted_wait_s == 0.0
    assert len(engine.step()) == 2
    now[0] += 6.0
    events = run(engine)
    assert isinstance(events[0], Failed)
    assert isinstance(events[0].error, DeadlineExceededError)
    assert {event.request_id for event in events[1:]} == {"r1"}
    stats = engine.stats()
    assert (stats.num_expired, stats.num_finished, stats.num_wasted_steps) == (1, 1, 1)
    engine.check()


def test_native_size_is_scaled_up_to_the_size_asked_for(model_dir: str) -> None:
    native = dataclasses.replace(PROFILE, size=dataclasses.replace(PROFILE.size, draw="native"))
    engine = load_engine(EngineConfig(profile=native, model_dir=model_dir, cpu_threads=1))
    picture = draw(engine, request(0, width_px=256, height_px=128))["r0"]
    assert picture.image.shape == (128, 256, 3)
    assert (picture.drawn_width_px, picture.drawn_height_px) == (96, 48)
    small = draw(engine, request(0, width_px=32, height_px=64))["r0"]
    assert (small.drawn_width_px, small.drawn_height_px) == (32, 64)


def test_order_of_arrival_does_not_matter_to_any_picture(engine: FluxEngine) -> None:
    crowd = [MIX[0], MIX[3], MIX[7]]
    first = draw(engine, *crowd)
    for order in itertools.permutations(crowd):
        again = draw(engine, *order)
        assert all(difference(again[key], first[key]) <= PIXEL_TOLERANCE for key in first)


def test_model_files_are_where_the_loader_looks(model_dir: str) -> None:
    names = {path.name for path in Path(model_dir).iterdir()}
    assert names == set(dataclasses.asdict(PROFILE.files).values())
