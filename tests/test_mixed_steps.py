"""Any company, any order, any interruption: what a request draws is what it draws alone.

Real (tiny) networks in float32. Two tolerances: a step's velocity may differ by ``STEP_ERROR`` of its norm, since
matrix products of another batch size add up in another order; those differences pass through at most ``MAX_STEPS``
further steps and the network's own sensitivity, which makes ``LATENT_ERROR`` for finished latents.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.config import EngineConfig
from engine.engine import FluxEngine, load_engine
from engine.profile import DrawnSize
from engine.request import Failed, Finished, ImageRequest, Reference, RgbImage, SchedulerName, StepProgress
from engine.runner import FluxRunner, Row
from engine.runtime import recorded
from engine.scheduler import Candidate, StepBudget
from engine.weights.untrained import write_untrained
from tests.one_memory import on_one_memory
from tests.tiny import tiny_profile

PROFILE = tiny_profile()
STEP_ERROR = 1e-5
LATENT_ERROR = 1e-4
PIXEL_TOLERANCE = 2
MAX_STEPS = 6
SIZES = [DrawnSize(width_px=w, height_px=h) for w, h in ((32, 32), (64, 64), (64, 32), (32, 64), (96, 48), (128, 128))]

sizes = st.sampled_from(SIZES)
references = st.none() | st.integers(0, 3)


@pytest.fixture(scope="module", params=["as written", "recorded"])
def runner(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[FluxRunner]:
    """Passes as they are on a CPU; and recorded at once, on memory that all requests of a shape share, as on a GPU."""
    folder = str(tmp_path_factory.mktemp("tiny-model"))
    write_untrained(PROFILE, folder, dtype="float32")
    made = load_engine(EngineConfig(profile=PROFILE, model_dir=folder, cpu_threads=1))._runner
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "recorded":
            patch.setattr(recorded, "NUM_PASSES_BEFORE", 1)
            passes = recorded.RecordedPasses(
                made._networks.flux, max_recordings=4, max_tokens=10_000, recorder=on_one_memory
            )
            patch.setattr(made, "_pass", passes)
        yield made
        assert made._pass.num_recordings == (4 if request.param == "recorded" else 0)


def reference(index: int | None) -> Reference | None:
    if index is None:
        return None
    return Reference(embedding=np.random.default_rng(index).standard_normal(20).astype(np.float32), key=f"face-{index}")


# -- one step --------------------------------------------------------------------------------------------------------


@st.composite
def rows(draw: st.DrawFn) -> tuple[DrawnSize, int, int | None, float, float, float, int]:
    """Size, prompt, reference, strength, noise level, distilled guidance, seed."""
    return (
        draw(sizes),
        draw(st.integers(0, 3)),
        draw(references),
        draw(st.floats(0.0, 1.0)),
        draw(st.floats(0.02, 1.0)),
        draw(st.floats(0.0, 10.0)),
        draw(st.integers(0, 2**63 - 1)),
    )


def row_of(runner: FluxRunner, values: tuple[DrawnSize, int, int | None, float, float, float, int]) -> Row:
    size, prompt, face, scale, sigma, guidance, seed = values
    known = reference(face)
    return Row(
        tokens=runner.initial_tokens(seed, size),
        position_ids=runner.position_ids(size),
        text=runner.encode_prompt(f"prompt {prompt}"),
        image_prompt=runner.black_prompt if known is None else runner.encode_reference(known).scaled(scale),
        sigma=sigma,
        guidance=guidance,
    )


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(crowd=st.lists(rows(), min_size=2, max_size=8))
def test_a_step_in_any_company_equals_the_step_alone(
    runner: FluxRunner, crowd: list[tuple[DrawnSize, int, int | None, float, float, float, int]]
) -> None:
    together = runner.velocity([row_of(runner, values) for values in crowd])
    for values, velocity in zip(crowd, together, strict=True):
        (alone,) = runner.velocity([row_of(runner, values)])
        assert relative_error(velocity, alone) <= STEP_ERROR


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(crowd=st.lists(rows(), min_size=2, max_size=6), data=st.data())
def test_one_rows_conditions_do_not_reach_another_to_the_bit(
    runner: FluxRunner, crowd: list[tuple[DrawnSize, int, int | None, float, float, float, int]], data: st.DataObject
) -> None:
    changed = data.draw(st.integers(0, len(crowd) - 1))
    size, *_ = crowd[changed]
    swapped = [*crowd]
    swapped[changed] = (size, 9, 9, 1.0, 0.5, 1.0, 99)
    before = runner.velocity([row_of(runner, values) for values in crowd])
    after = runner.velocity([row_of(runner, values) for values in swapped])
    for index, (one, other) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(one, other) == (index != changed)


# -- whole pictures, with a scheduler that does anything ---------------------------------------------------------------


class AnyPolicy:
    """Chooses at random: requests are set aside and taken up again, in ever other company."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, candidates: Sequence[Candidate], budget: StepBudget, now_s: float) -> list[Candidate]:
        if not candidates:
            return []
        chosen = self._rng.sample(list(candidates), self._rng.randint(1, min(4, len(candidates))))
        return sorted(chosen, key=candidates.index)

    def ahead_s(self, new: Candidate, candidates: Sequence[Candidate]) -> float:
        return 0.0

    def lateness_s(self, new: Candidate, candidates: Sequence[Candidate], now_s: float) -> float:
        return 0.0

    def surely_met_beside_s(self, new: Candidate) -> float:
        return 0.0


@st.composite
def any_request(draw: st.DrawFn) -> ImageRequest:
    size = draw(sizes)
    scheduler: SchedulerName = draw(st.sampled_from(("simple", "flux")))
    return ImageRequest(
        request_id="",
        prompt=f"prompt {draw(st.integers(0, 3))}",
        negative_prompt=draw(st.sampled_from(("", "hat"))),
        reference=reference(draw(references)),
        width_px=size.width_px,
        height_px=size.height_px,
        num_steps=draw(st.integers(1, MAX_STEPS)),
        cfg=draw(st.sampled_from((1.0, 1.0, 1.5, 4.0))),
        guidance=draw(st.floats(0.0, 10.0)),
        seed=draw(st.integers(0, 2**63 - 1)),
        ip_scale=draw(st.floats(0.0, 1.0)),
        scheduler=scheduler,
        preview_every=draw(st.integers(0, 2)),
    )


class Drawn:
    """An engine on a runner, that keeps the latents of every picture."""

    def __init__(self, runner: FluxRunner, policy: AnyPolicy | None) -> None:
        self.latents: list[Tensor] = []
        self.engine = FluxEngine(EngineConfig(profile=PROFILE, model_dir="", cpu_threads=1), _Listening(runner, self))
        if policy is not None:
            self.engine._ledger._policy = policy

    def step(self) -> dict[str, tuple[Tensor, RgbImage]]:
        self.latents.clear()
        events = self.engine.step()
        finished = [event for event in events if isinstance(event, Finished)]
        return {event.request_id: (z, event.image) for event, z in zip(finished, self.latents, strict=True)}


class _Listening(FluxRunner):
    """The runner, whose decoder is overheard."""

    def __init__(self, runner: FluxRunner, listener: Drawn) -> None:
        self.__dict__.update(runner.__dict__)
        self._listener = listener

    def decode(self, tokens: Tensor, size: DrawnSize) -> RgbImage:
        self._listener.latents.append(tokens)
        return super().decode(tokens, size)


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    crowd=st.lists(any_request(), min_size=2, max_size=7),
    seed=st.integers(0, 10_000),
    leaving=st.sets(st.integers(0, 6), max_size=2),
)
def test_pictures_drawn_with_joins_leaves_and_interruptions_equal_those_drawn_alone(
    runner: FluxRunner, crowd: list[ImageRequest], seed: int, leaving: set[int]
) -> None:
    rng = random.Random(seed)
    requests = [dataclasses.replace(item, request_id=f"r{index}") for index, item in enumerate(crowd)]
    company = Drawn(runner, AnyPolicy(rng))
    waiting, together = list(requests), {}
    while waiting or company.engine.has_work:
        if waiting and (not company.engine.has_work or rng.random() < 0.5):
            company.engine.submit(waiting.pop(0))
        if leaving and rng.random() < 0.2:
            company.engine.cancel(f"r{leaving.pop()}")
        together.update(company.step())
    stats = company.engine.stats()
    assert stats.num_finished == len(together)
    assert stats.num_finished + stats.num_cancelled == len(requests)
    for item in requests:
        if item.request_id in together:
            latents, image = together[item.request_id]
            alone = Drawn(runner, None)
            alone.engine.submit(item)
            pictures: dict[str, tuple[Tensor, RgbImage]] = {}
            while alone.engine.has_work:
                pictures.update(alone.step())
            wanted_latents, wanted_image = pictures[item.request_id]
            assert relative_error(latents, wanted_latents) <= LATENT_ERROR
            assert np.abs(image.astype(int) - wanted_image.astype(int)).max() <= PIXEL_TOLERANCE


def test_a_swapped_reference_changes_its_own_picture_alone_through_interruptions_too(runner: FluxRunner) -> None:
    crowd = [
        ImageRequest(
            request_id=f"r{index}",
            prompt="a",
            reference=reference(index),
            width_px=size.width_px,
            height_px=size.height_px,
            num_steps=3 + index % 2,
            cfg=1.0 + index % 2,
            seed=index,
        )
        for index, size in enumerate(SIZES[:5])
    ]

    def pictures(requests: list[ImageRequest]) -> dict[str, RgbImage]:
        drawn = Drawn(runner, AnyPolicy(random.Random(5)))
        for item in requests:
            drawn.engine.submit(item)
        images: dict[str, RgbImage] = {}
        while drawn.engine.has_work:
            images.update({name: image for name, (_, image) in drawn.step().items()})
        return images

    before = pictures(crowd)
    for changed in range(len(crowd)):
        swapped = [
            dataclasses.replace(item, reference=reference(9)) if i == changed else item for i, item in enumerate(crowd)
        ]
        after = pictures(swapped)
        for index in range(len(crowd)):
            assert np.array_equal(before[f"r{index}"], after[f"r{index}"]) == (index != changed)


def test_previews_come_where_asked_and_change_no_picture(runner: FluxRunner) -> None:
    drawn = Drawn(runner, None)
    drawn.engine.warm_up()
    plain = ImageRequest(request_id="plain", prompt="a", width_px=96, height_px=64, num_steps=6)
    for item in (plain, dataclasses.replace(plain, request_id="shown", preview_every=2)):
        drawn.engine.submit(item)
    drawn.latents.clear()
    events = []
    while drawn.engine.has_work:
        events += drawn.engine.step()
    assert not [event for event in events if isinstance(event, Failed)]
    shown = [event for event in events if isinstance(event, StepProgress) and event.preview is not None]
    assert [(event.request_id, event.step) for event in shown] == [("shown", 2), ("shown", 4), ("shown", 6)]
    finished = [event for event in events if isinstance(event, Finished)]
    assert np.abs(finished[0].image.astype(int) - finished[1].image.astype(int)).max() <= PIXEL_TOLERANCE
    preview = drawn.engine._preview
    assert preview is not None
    latents = drawn.latents[[event.request_id for event in finished].index("shown")]
    last = shown[-1].preview
    assert last is not None
    assert last.shape == (8, 12, 3)
    assert np.array_equal(last, preview.image(latents, DrawnSize(width_px=96, height_px=64)))
