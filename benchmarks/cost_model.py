"""How well the cost model predicts: a mixed trace through the engine, every step priced before it is taken.

    python -m benchmarks.cost_model --out benchmarks/results/cost_model_cpu.json
    python -m benchmarks.cost_model --device cuda --dtype bfloat16 --profile flux-dev --model-dir /tmp/flux-dev --out …

Sizes, steps, guidance and company are random; requests come in while others are drawn. Reported is
|predicted ÷ measured − 1|: of steps, once as calibrated at warm-up and once with the corrections made under way; of the
stages around them; of whole requests as priced when they were taken in, among those that shared no step. Weights are
random where the folder holds none: they cost what trained ones cost.

``--clock cpu`` counts this process's CPU seconds instead of the wall's: for a CPU that is shared with other work, with
``--cpu-threads 1``.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.config import EngineConfig
from engine.cost_meter import CostMeter
from engine.cost_model import CostModel, step_features
from engine.engine import UNCALIBRATED, FluxEngine
from engine.memory import MEMORY_PROFILES
from engine.profile import SIZE_STEP_PX, ModelProfile, load_profile
from engine.request import Failed, Finished, ImageRequest, Reference, StepProgress
from engine.runner import FluxRunner
from engine.weights.load import load_networks
from engine.weights.untrained import write_untrained

SIDES = (0.5, 0.625, 0.75, 0.875, 1.0)
"""Sides of the pictures, in parts of the native size. Calibration times 0.5, 0.75 and 1."""

STEPS = (2, 4, 8, 12, 20)
MEAN_STEPS_BETWEEN_ARRIVALS = 6.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """A step: what it held, and what it was thought to take before it was taken."""

    row_tokens: tuple[int, ...]
    as_calibrated_s: float
    as_corrected_s: float
    measured_s: float

    @property
    def kind(self) -> str:
        if len(self.row_tokens) == 1:
            return "one row"
        return "rows alike" if len(set(self.row_tokens)) == 1 else "rows of several sizes"


class RecordingMeter(CostMeter):
    """Keeps every observation."""

    def __init__(self) -> None:
        super().__init__(UNCALIBRATED)
        self.calibrated = UNCALIBRATED
        self.steps: list[Observation] = []
        self.stages: dict[str, list[float]] = collections.defaultdict(list)

    def observe_step(self, row_tokens: Sequence[int], measured_s: float) -> None:
        self.steps.append(
            Observation(
                row_tokens=tuple(row_tokens),
                as_calibrated_s=self.calibrated.step.seconds(step_features(row_tokens)),
                as_corrected_s=self.model.step_seconds(row_tokens),
                measured_s=measured_s,
            )
        )
        super().observe_step(row_tokens, measured_s)

    def observe_text(self, num_prompts: int, measured_s: float) -> None:
        self.stages["text"].append(abs(self.model.text_seconds(num_prompts) / measured_s - 1.0))
        super().observe_text(num_prompts, measured_s)

    def observe_vision(self, num_references: int, measured_s: float) -> None:
        self.stages["vision"].append(abs(self.model.vision_seconds(num_references) / measured_s - 1.0))
        super().observe_vision(num_references, measured_s)

    def observe_decode(self, num_pixels: int, measured_s: float) -> None:
        self.stages["decode"].append(abs(self.model.decode_seconds(num_pixels) / measured_s - 1.0))
        super().observe_decode(num_pixels, measured_s)


def mixed_requests(profile: ModelProfile, num: int, rng: random.Random) -> list[ImageRequest]:
    """Every combination of what costs: size, steps, guidance, a reference to encode or none."""

    def side_px(native_px: int) -> int:
        return max(profile.size.min_side_px, round(rng.choice(SIDES) * native_px / SIZE_STEP_PX) * SIZE_STEP_PX)

    def reference(index: int) -> Reference | None:
        if rng.random() < 0.3:
            return None
        crop = np.random.default_rng(index).integers(0, 256, (224, 224, 3), dtype=np.uint8)
        return Reference(crop=crop, key=str(index))

    return [
        ImageRequest(
            request_id=f"r{index}",
            prompt=f"person {index % (num // 2)}",
            reference=reference(index % (num // 2)),
            width_px=side_px(profile.size.native_width_px),
            height_px=side_px(profile.size.native_height_px),
            num_steps=rng.choice(STEPS),
            cfg=rng.choice((1.0, 1.0, 1.0, 3.5)),
            seed=index,
        )
        for index in range(num)
    ]


def run_trace(engine: FluxEngine, requests: Iterable[ImageRequest], rng: random.Random) -> list[float]:
    """Draw all, taking each in after a random number of steps; errors of the prices of those that rode alone."""
    waiting = collections.deque(requests)
    priced_s: dict[str, float] = {}
    shared: set[str] = set()
    errors: list[float] = []
    num_steps_to_next = 0.0
    while waiting or engine.has_work:
        while waiting and (num_steps_to_next <= 0.0 or not engine.has_work):
            request = waiting.popleft()
            priced_s[request.request_id] = engine.submit(request).predicted_device_s
            num_steps_to_next += rng.expovariate(1.0 / MEAN_STEPS_BETWEEN_ARRIVALS)
        events = engine.step()
        num_steps_to_next -= 1.0
        riders = [event.request_id for event in events if isinstance(event, StepProgress)]
        shared.update(riders if len(riders) > 1 else ())
        for event in events:
            assert not isinstance(event, Failed), event
            if isinstance(event, Finished) and event.request_id not in shared:
                errors.append(abs(priced_s[event.request_id] / event.device_s - 1.0))
    return errors


def percent(errors: Sequence[float]) -> dict[str, float | int]:
    """Median and 90th percentile, in percent."""
    if not errors:
        return {"num": 0}
    ordered = sorted(errors)
    return {
        "num": len(ordered),
        "median_percent": round(100 * statistics.median(ordered), 2),
        "p90_percent": round(100 * ordered[int(0.9 * (len(ordered) - 1))], 2),
    }


def summary(steps: Sequence[Observation]) -> dict[str, Any]:
    """Errors of steps, as calibrated and as corrected."""
    return {
        "as_calibrated": percent([abs(step.as_calibrated_s / step.measured_s - 1.0) for step in steps]),
        "as_corrected": percent([abs(step.as_corrected_s / step.measured_s - 1.0) for step in steps]),
    }


CLOCKS = {"wall": time.monotonic, "cpu": time.process_time}


def measure(config: EngineConfig, *, num_requests: int, seed: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Load, calibrate, run the trace."""
    if config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads)
    networks = load_networks(
        config.profile,
        config.model_dir,
        device=config.device,
        dtype=config.dtype,
        memory=MEMORY_PROFILES[config.memory],
    )
    meter = RecordingMeter()
    engine = FluxEngine(config, FluxRunner(networks, config), meter=meter, clock=clock)
    load_before = os.getloadavg()[0]
    started_s = time.perf_counter()
    engine.warm_up()
    warm_up_s = time.perf_counter() - started_s
    meter.calibrated = engine.cost_model
    rng = random.Random(seed)
    started_s = time.perf_counter()
    request_errors = run_trace(engine, mixed_requests(config.profile, num_requests, rng), rng)
    stats = engine.stats()
    assert CostModel.from_dict(json.loads(json.dumps(engine.cost_model.to_dict()))) == engine.cost_model
    kinds = sorted({step.kind for step in meter.steps})
    return {
        "num_requests": num_requests,
        "seed": seed,
        "load_average_before_after": [round(load_before, 2), round(os.getloadavg()[0], 2)],
        "warm_up_s": round(warm_up_s, 2),
        "trace_s": round(time.perf_counter() - started_s, 1),
        "requests_per_step": round(stats.num_sample_steps / stats.num_steps, 2),
        "num_step_shapes": len({tuple(sorted(step.row_tokens)) for step in meter.steps}),
        "steps": summary(meter.steps),
        "steps_by_kind": {kind: summary([step for step in meter.steps if step.kind == kind]) for kind in kinds},
        "stages": {name: percent(errors) for name, errors in sorted(meter.stages.items())},
        "requests_that_shared_no_step": percent(request_errors),
        "calibrated": meter.calibrated.to_dict(),
        "corrected": engine.cost_model.to_dict(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--model-dir", help="default: a temporary folder, with random weights")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--cpu-threads", type=int)
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS))
    parser.add_argument("--max-batch-tokens", type=int, default=18_432)
    parser.add_argument("--num-requests", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    profile = load_profile(arguments.profile)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.model_dir or temporary
        if not any(Path(folder).glob("*.safetensors")):
            write_untrained(profile, folder, device=arguments.device, on_file=print)
        config = EngineConfig(
            profile=profile,
            model_dir=folder,
            device=arguments.device,
            dtype=arguments.dtype,
            cpu_threads=arguments.cpu_threads,
            max_batch_tokens=arguments.max_batch_tokens,
            max_queued_device_s=1e9,
        )
        result = {
            "command": " ".join(["python -m benchmarks.cost_model", *sys.argv[1:]]),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or "CPU",
            "num_cpus": os.cpu_count(),
            "profile": profile.name,
            "dtype": arguments.dtype,
            "clock": arguments.clock,
            **measure(config, num_requests=arguments.num_requests, seed=arguments.seed, clock=CLOCKS[arguments.clock]),
        }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("steps", "steps_by_kind", "stages")}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
