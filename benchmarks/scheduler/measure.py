"""Real networks in real time, every policy on the same engine."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from benchmarks import engine_flags, traces
from benchmarks.progress import tell
from benchmarks.scheduler.compare import POLICIES, summary, under_every_policy
from benchmarks.scheduler.crowds import Crowd, crowds, mean_alone_seconds, mix_as_json, slowed
from benchmarks.simulation.fleet import KnownCost, alone_seconds
from benchmarks.traces import Arrival, ArrivalProcess, Mix
from engine.calibration import calibrated
from engine.config import EngineConfig
from engine.cost_meter import CostMeter
from engine.cost_model import CostModel
from engine.engine import FluxEngine
from engine.request import Failed, Finished, ImageRequest, Reference
from engine.runner import FluxRunner
from engine.scheduler import PolicyName

PLANNED = 0.75
"""Share of the time that crowds are made for: policies differ in how long they take, and bursts go on being drawn after
the last of them came (a third longer than planned, seen on an H200)."""

MIN_REQUESTS = 8

NUM_ALONE = 16
"""Requests drawn alone, one after another, before any crowd."""


def measure(arguments: argparse.Namespace) -> None:
    """Every crowd that there is time for. The file is written anew after each."""
    facts = {"command": arguments.command, **engine_flags.facts(arguments)}
    config, runner = engine_flags.load(arguments)
    cost = calibrated(runner, config.profile, config, clock=time.perf_counter)
    mix = Mix(sides_px=arguments.sides, num_steps=arguments.steps, cfg=arguments.cfg)
    slowness = Device(config=config, runner=runner, cost=cost).slowness(mix, seed=arguments.seed)
    cost = slowed(cost, slowness)
    device = Device(config=config, runner=runner, cost=cost)
    mean_s = mean_alone_seconds(config.profile, cost, mix, seed=arguments.seed)
    requests = min(arguments.requests, num_that_fit(arguments.seconds, mean_s, arguments.loads))
    tell(
        f"a request takes {mean_s:.2f} s alone, {slowness:.2f} times what calibration says; "
        f"{requests} of them to a crowd"
    )
    result: dict[str, Any] = {
        **facts,
        "mix": mix_as_json(mix),
        "max_batch_tokens": config.max_batch_tokens,
        "max_batch_samples": config.max_batch_samples,
        "alone_by_calibration": round(slowness, 4),
        "cost_model": cost.to_dict(),
        "requests_of_a_crowd": requests,
        "is_complete": False,
        "crowds": [],
    }
    until_s = time.monotonic() + arguments.seconds
    for crowd in crowds(
        config.profile, cost, mix, loads=arguments.loads, requests=requests, num_devices=1, seed=arguments.seed
    ):
        if time.monotonic() + len(POLICIES) * device.seconds_of(crowd) > until_s:
            tell(f"{crowd.name} is left out: no time for it")
            continue
        result["crowds"].append(under_every_policy(crowd, device.replay))
        result["is_complete"] = len(result["crowds"]) == len(get_args(ArrivalProcess)) * len(arguments.loads)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def num_that_fit(seconds: float, mean_s: float, loads: Sequence[float]) -> int:
    """Requests of a crowd, so that all crowds under all policies take about so long: below full load it is the arrivals
    that take time, above it the work."""
    num_replays = len(POLICIES) * len(get_args(ArrivalProcess))
    return max(MIN_REQUESTS, int(PLANNED * seconds / (num_replays * mean_s * sum(max(1.0, 1.0 / x) for x in loads))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """One device and its networks, for one engine after another."""

    config: EngineConfig
    runner: FluxRunner
    cost: CostModel

    def alone_s(self, arrival: Arrival) -> float:
        """What a request takes by itself."""
        return alone_seconds(arrival, self.config.profile, self.cost)

    def slowness(self, mix: Mix, *, seed: int) -> float:
        """What requests take alone, one after another, as a multiple of what the cost model says.

        Calibration times every shape a few times, on a device that rested before; working for minutes on end is
        another matter. What is good, and what load a crowd is, hangs on it.
        """
        trace = traces.generate(arrivals="poisson", rate_per_s=1.0, duration_s=2.0 * NUM_ALONE, seed=seed + 7, mix=mix)
        self.runner.text_cache.clear()
        self.runner.image_cache.clear()
        engine = FluxEngine(self.config, self.runner, meter=KnownCost(self.cost))
        predicted_s = 0.0
        started_s = time.perf_counter()
        for number, arrival in enumerate(trace[:NUM_ALONE]):
            predicted_s += engine.submit(_request(number, arrival)).predicted_device_s
            while engine.has_work:
                engine.step()
        return (time.perf_counter() - started_s) / predicted_s

    def seconds_of(self, crowd: Crowd) -> float:
        """So long a crowd takes, drawn one after another."""
        ended_s = 0.0
        for arrival in crowd.trace:
            ended_s = max(ended_s, arrival.at_s) + self.alone_s(arrival)
        return ended_s

    def replay(self, crowd: Crowd, policy: PolicyName) -> tuple[dict[str, Any], list[float]]:
        """See :data:`benchmarks.scheduler.compare.Replay`."""
        self.runner.text_cache.clear()  # no policy shall profit from what those before it encoded
        self.runner.image_cache.clear()
        meter = CostMeter(self.cost)
        engine = FluxEngine(dataclasses.replace(self.config, policy=policy), self.runner, meter=meter)
        done_s, ended_s = drawn(engine, crowd)
        latencies_s = [done_s[number] - arrival.at_s for number, arrival in enumerate(crowd.trace)]
        stats = engine.stats()
        found = summary(
            crowd.trace,
            latencies_s,
            [self.alone_s(arrival) for arrival in crowd.trace],
            ended_s=ended_s,
            busy_s=stats.device_s,
        )
        error = stats.cost_model_error
        found["cost_model_error"] = None if error is None else round(error, 4)
        found["step_corrections"] = [round(value, 3) for value in meter.model.step.corrections]
        found["device_s_of_predicted"] = round(stats.device_s / sum(self.alone_s(one) for one in crowd.trace), 3)
        found["requests_per_step"] = round(stats.num_sample_steps / stats.num_steps, 2)
        return found, latencies_s


def drawn(engine: FluxEngine, crowd: Crowd) -> tuple[dict[int, float], float]:
    """Draw a crowd as it comes: when each picture was done, by number in the trace, and when all was over."""
    waiting = collections.deque(enumerate(crowd.trace))
    done_s: dict[int, float] = {}
    start_s = time.perf_counter()
    while waiting or engine.has_work:
        now_s = time.perf_counter() - start_s
        while waiting and waiting[0][1].at_s <= now_s:
            engine.submit(_request(*waiting.popleft()))
        if not engine.has_work:
            time.sleep(max(0.0, waiting[0][1].at_s - (time.perf_counter() - start_s)))
            continue
        for event in engine.step():
            assert not isinstance(event, Failed), event
            if isinstance(event, Finished):
                done_s[int(event.request_id)] = time.perf_counter() - start_s
    return done_s, time.perf_counter() - start_s


def _request(number: int, arrival: Arrival) -> ImageRequest:
    """As :func:`benchmarks.simulation.fleet.work_of` prices it: a prompt of its own, a face that others have too."""
    face = np.random.default_rng(arrival.person).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    return ImageRequest(
        request_id=str(number),
        prompt=f"person {arrival.person}, picture {number}",
        reference=Reference(crop=face, key=f"person {arrival.person}"),
        width_px=arrival.width_px,
        height_px=arrival.height_px,
        num_steps=arrival.num_steps,
        cfg=arrival.cfg,
        seed=arrival.seed,
    )
