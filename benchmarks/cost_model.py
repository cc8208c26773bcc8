"""How well the cost model predicts: a mixed trace through the engine, every step priced before it is taken.

    python -m benchmarks.cost_model --out benchmarks/results/cost_model_cpu.json
    python -m benchmarks.cost_model --profile flux-dev --device cuda --dtype bfloat16 --model-dir /tmp/flux-dev \\
        --seconds 75 --out benchmarks/results/cost_model_h200.json

Sizes, steps, guidance and company are random; requests come in while others are drawn. Reported is
|predicted ÷ measured − 1|: of steps, once as calibrated at warm-up and once with the corrections made under way; of the
stages around them; of whole requests as priced when they were taken in, among those that shared no step. The file is
written anew every few seconds, so that a run that is cut off leaves what it has.

The second line on one H200, from its measured steps (158 ms at 1024², 56 ms at 512²): 41 s to write random weights of
full size where the folder has none, 6 s to load them, 10 s for Python and warm-up; 60 requests of 9.2 steps and 1.25
rows at a mean of 99 ms are 70 s. At most 41 + 6 + 10 + 75 + 6 s (who is in it when ``--seconds`` are over is still
drawn) = 140 s; 95 s where the folder is full.

``--clock cpu`` counts this process's CPU seconds instead of the wall's: for a CPU that is shared with other work, with
``--cpu-threads 1``.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import engine_flags
from benchmarks.progress import tell
from engine.cost_meter import CostMeter
from engine.cost_model import step_features
from engine.engine import UNCALIBRATED, FluxEngine
from engine.profile import SIZE_STEP_PX, ModelProfile
from engine.request import Failed, Finished, ImageRequest, Reference, StepProgress

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


def run_trace(
    engine: FluxEngine, requests: Iterable[ImageRequest], rng: random.Random, *, is_over: Callable[[], bool]
) -> Iterator[float | None]:
    """Draw all, taking each in after a random number of steps, and none once it is over.

    Yields:
        For every picture, by how much its price was off; None where it shared a step.
    """
    waiting = collections.deque(requests)
    priced_s: dict[str, float] = {}
    shared: set[str] = set()
    num_steps_to_next = 0.0
    while waiting or engine.has_work:
        if is_over():
            waiting.clear()
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
            if isinstance(event, Finished):
                is_alone = event.request_id not in shared
                yield abs(priced_s[event.request_id] / event.device_s - 1.0) if is_alone else None


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

WRITE_EVERY_S = 5.0


class Run:
    """One trace through one engine, and what it has shown so far."""

    def __init__(self, engine: FluxEngine, meter: RecordingMeter) -> None:
        self._engine = engine
        self._meter = meter
        self._request_errors: list[float] = []
        self._num_pictures = 0
        started_s = time.monotonic()
        engine.warm_up()
        self._warm_up_s = time.monotonic() - started_s
        meter.calibrated = engine.cost_model
        self._began_s = time.monotonic()

    def go(
        self, requests: Sequence[ImageRequest], rng: random.Random, *, max_s: float, write: Callable[[Any], None]
    ) -> dict[str, Any]:
        """Draw all that fit into ``max_s``; ``write`` takes the report, now and then and at the end."""
        written_s = self._began_s
        for error in run_trace(self._engine, requests, rng, is_over=lambda: self._passed_s >= max_s):
            self._num_pictures += 1
            self._request_errors += [] if error is None else [error]
            if time.monotonic() - written_s >= WRITE_EVERY_S:
                written_s = time.monotonic()
                write(self.report(is_complete=False))
                tell(f"{self._num_pictures} of {len(requests)} pictures, {len(self._meter.steps)} steps")
        report = self.report(is_complete=self._num_pictures == len(requests))
        write(report)
        return report

    def report(self, *, is_complete: bool) -> dict[str, Any]:
        """All figures. ``is_complete`` says whether time was enough for every request."""
        stats, steps = self._engine.stats(), self._meter.steps
        kinds = sorted({step.kind for step in steps})
        return {
            "is_complete": is_complete,
            "num_requests": self._num_pictures,
            "warm_up_s": round(self._warm_up_s, 2),
            "trace_s": round(self._passed_s, 1),
            "requests_per_step": round(stats.num_sample_steps / max(1, stats.num_steps), 2),
            "num_step_shapes": len({tuple(sorted(step.row_tokens)) for step in steps}),
            "steps": summary(steps),
            "steps_by_kind": {kind: summary([step for step in steps if step.kind == kind]) for kind in kinds},
            "stages": {name: percent(errors) for name, errors in sorted(self._meter.stages.items())},
            "requests_that_shared_no_step": percent(self._request_errors),
            "calibrated": self._meter.calibrated.to_dict(),
            "corrected": self._engine.cost_model.to_dict(),
        }

    @property
    def _passed_s(self) -> float:
        return time.monotonic() - self._began_s


def main(argv: Sequence[str] | None = None) -> int:
    """Load, calibrate, run the trace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    engine_flags.add_flags(parser, max_batch_tokens=18_432)
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS))
    parser.add_argument("--num-requests", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=600.0, help="of the trace, at most (default %(default)g)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv)

    facts = {
        "command": " ".join(["python -m benchmarks.cost_model", *argv]),
        **engine_flags.facts(arguments),
        "clock": arguments.clock,
        "seed": arguments.seed,
    }

    def write(report: dict[str, Any]) -> None:
        arguments.out.write_text(json.dumps(facts | report, indent=2) + "\n")

    config, runner = engine_flags.load(arguments)
    meter = RecordingMeter()
    run = Run(FluxEngine(config, runner, meter=meter, clock=CLOCKS[arguments.clock]), meter)
    tell("warm; the trace begins")
    rng = random.Random(arguments.seed)
    requests = mixed_requests(config.profile, arguments.num_requests, rng)
    report = run.go(requests, rng, max_s=arguments.seconds, write=write)
    print(json.dumps({key: report[key] for key in ("steps", "steps_by_kind", "stages")}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
