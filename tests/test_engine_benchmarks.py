"""The benchmarks that drive an engine themselves run, stay within their time, and write what they have."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from benchmarks import cost_model
from benchmarks.scheduler import crowds, measure
from benchmarks.scheduler.compare import POLICIES
from benchmarks.simulation.fleet import alone_seconds
from benchmarks.traces import Mix
from engine.config import EngineConfig
from engine.cost_model import CostModel
from engine.engine import FluxEngine
from engine.profile import load_profile
from engine.runner import FluxRunner, load_runner
from engine.weights.untrained import write_untrained
from tests.tiny import tiny_profile

MIX = Mix(sides_px={32: 0.5, 64: 0.5}, num_steps={1: 0.5, 2: 0.5}, cfg={1.0: 1.0})
COST = CostModel.simple(step_s=1e-3)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[EngineConfig, FluxRunner]:
    folder = str(tmp_path_factory.mktemp("tiny"))
    write_untrained(tiny_profile(), folder)
    config = EngineConfig(profile=tiny_profile(), model_dir=folder, cpu_threads=1, max_queued_device_s=1e9)
    return config, load_runner(config)


def test_every_policy_draws_the_same_crowd(loaded: tuple[EngineConfig, FluxRunner]) -> None:
    config, runner = loaded
    device = measure.Device(config=config, runner=runner, cost=COST)
    (crowd, *_) = crowds.crowds(config.profile, COST, MIX, loads=(1.0,), requests=5, num_devices=1, seed=0)
    assert crowd.num_requests == 5
    for policy in POLICIES:
        found, latencies_s = device.replay(crowd, policy)
        assert found["num_requests"] == len(latencies_s) == 5
        assert min(latencies_s) > 0.0


def test_what_requests_take_alone_is_measured_against_the_cost_model(loaded: tuple[EngineConfig, FluxRunner]) -> None:
    config, runner = loaded
    far_too_fast, far_too_slow = (
        measure.Device(config=config, runner=runner, cost=CostModel.simple(step_s=step_s)) for step_s in (1e-6, 1e3)
    )
    assert far_too_fast.slowness(MIX, seed=0) > 1.0 > far_too_slow.slowness(MIX, seed=0) > 0.0


@pytest.mark.parametrize("seconds", [60.0, 6000.0])
def test_crowds_are_made_for_the_time_there_is(seconds: float) -> None:
    profile, cost, loads = load_profile("flux-dev"), CostModel.simple(token_s=3e-5), (0.8, 1.5)
    mean_s = crowds.mean_alone_seconds(profile, cost, Mix(), seed=0)
    requests = measure.num_that_fit(seconds, mean_s, loads)
    made = list(crowds.crowds(profile, cost, Mix(), loads=loads, requests=requests, num_devices=1, seed=0))
    assert [crowd.num_requests for crowd in made] == [requests] * 4
    for crowd in made:
        work_s = sum(alone_seconds(arrival, profile, cost) for arrival in crowd.trace)
        assert crowd.load == pytest.approx(work_s / crowd.trace[-1].at_s)
    planned_s = len(POLICIES) * sum(max(1.0, 1.0 / crowd.load) * requests * mean_s for crowd in made)
    assert planned_s <= seconds or requests == measure.MIN_REQUESTS


def test_the_cost_models_trace_ends_when_its_time_is_over(loaded: tuple[EngineConfig, FluxRunner]) -> None:
    config, runner = loaded
    meter = cost_model.RecordingMeter()
    run = cost_model.Run(FluxEngine(config, runner, meter=meter), meter)
    requests = [
        dataclasses.replace(request, num_steps=2)
        for request in cost_model.mixed_requests(config.profile, 6, random.Random(0))
    ]
    written: list[dict[str, Any]] = []
    nothing = run.go(requests, random.Random(0), max_s=0.0, write=written.append)
    assert nothing["num_requests"] == 0
    assert not nothing["is_complete"]
    everything = run.go(requests, random.Random(0), max_s=3600.0, write=written.append)
    assert everything["is_complete"]
    assert everything["steps"]["as_corrected"]["num"] == len(meter.steps) > 0
    assert written[-1] == everything
