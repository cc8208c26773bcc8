"""Who should draw next? Three policies on the same engine and the same crowds, measured and simulated.

    python -m benchmarks.scheduler measure --out benchmarks/results/scheduler_cpu.json
    python -m benchmarks.scheduler measure --profile flux-dev --device cuda --dtype bfloat16 --model-dir DIR \
        --sides 512:0.5,1024:0.5 --requests 40 --out …
    python -m benchmarks.scheduler simulate --measured FILE --requests 2000 --replicas 1,4,16,64 --out FILE
    python -m benchmarks.scheduler plot --measured FILE --simulated FILE --out docs/images/scheduler.png

``measure`` replays traces (:mod:`benchmarks.traces`) against a real engine in real time: Poisson arrivals and bursts,
at shares of what the device can do when it draws one picture after another. Every policy meets the same requests on
the same networks. ``simulate`` replays traces of the same kind through the same ledger and policies on simulated time
(:mod:`benchmarks.simulation.fleet`) with the cost model that was measured, says whether it ranks the policies as the
measurement did, and goes on to fleets. A picture counts as good when it is there within three times what it takes on an
idle device.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks import traces
from benchmarks.simulation.fleet import Fleet, FleetSettings, alone_seconds
from benchmarks.traces import Arrival, ArrivalProcess, Mix
from engine.cost_model import CostModel, LinearCost, step_features
from engine.profile import ModelProfile, load_profile
from engine.scheduler import PolicyName, StepBudget

POLICIES: tuple[PolicyName, ...] = ("first_come", "static_batches", "shortest_remaining")
SLO_FACTOR = 3.0
LOADS = (0.5, 0.8, 1.0, 1.5)
CPU_SIDES = {128: 0.4, 192: 0.2, 256: 0.4}
"""The embedded model draws at 256² at most; small, medium and large are a quarter of full size."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Crowd:
    """One trace and how it was made. ``load`` is the work that arrives in a second, in seconds of the device."""

    arrivals: ArrivalProcess
    load: float
    trace: tuple[Arrival, ...]

    @property
    def name(self) -> str:
        return f"{self.arrivals} {self.load:.0%}"


def crowds(
    profile: ModelProfile,
    cost: CostModel,
    mix: Mix,
    *,
    loads: Sequence[float],
    requests: int,
    num_devices: int,
    seed: int,
) -> Iterator[Crowd]:
    """Both kinds of arrivals at every load, about so many requests each."""
    some = traces.generate(arrivals="poisson", rate_per_s=1.0, duration_s=4000.0, seed=seed + 99, mix=mix)
    mean_s = statistics.fmean(alone_seconds(arrival, profile, cost) for arrival in some)
    for arrivals in get_args(ArrivalProcess):
        for load in loads:
            rate = load * num_devices / mean_s
            trace = traces.generate(arrivals=arrivals, rate_per_s=rate, duration_s=requests / rate, seed=seed, mix=mix)
            yield Crowd(arrivals=arrivals, load=load, trace=trace)


def summary(
    trace: Sequence[Arrival],
    latencies_s: Sequence[float],
    alone_s: Sequence[float],
    *,
    ended_s: float,
    busy_s: float,
    num_devices: int = 1,
) -> dict[str, Any]:
    """What a run was like. The latency of a request counts from its scheduled arrival."""
    good = [latency <= SLO_FACTOR * alone for latency, alone in zip(latencies_s, alone_s, strict=True)]
    smallest = min(arrival.width_px for arrival in trace)
    small = [latency for latency, arrival in zip(latencies_s, trace, strict=True) if arrival.width_px == smallest]
    stretch = [latency / alone for latency, alone in zip(latencies_s, alone_s, strict=True)]

    def percentiles(values: Sequence[float]) -> dict[str, float]:
        return {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (50, 95, 99)}

    return {
        "num_requests": len(trace),
        "goodput_per_s": round(sum(good) / ended_s, 4),
        "good_share": round(statistics.fmean(good), 4),
        "latency_s": percentiles(latencies_s),
        "small_latency_s": percentiles(small),
        "times_alone": percentiles(stretch),
        "utilisation": round(busy_s / ended_s / num_devices, 3),
        "ended_s": round(ended_s, 2),
    }


def compared(runs: dict[PolicyName, tuple[dict[str, Any], Sequence[float]]]) -> dict[str, Any]:
    """The default policy against what everybody has: one after another, and batches that nobody joins."""
    ours, our_latencies_s = runs["shortest_remaining"]
    result: dict[str, Any] = {}
    for name in ("first_come", "static_batches"):
        other, other_latencies_s = runs[name]
        worst = max(mine / its for mine, its in zip(our_latencies_s, other_latencies_s, strict=True))
        result[f"against_{name}"] = {
            "goodput_ratio": _ratio(ours["goodput_per_s"], other["goodput_per_s"]),
            "small_p95_ratio": _ratio(ours["small_latency_s"]["p95"], other["small_latency_s"]["p95"]),
            "p99_ratio": _ratio(ours["latency_s"]["p99"], other["latency_s"]["p99"]),
            "worst_request_ratio": round(worst, 2),
        }
    return result


def _ratio(mine: float, other: float) -> float | None:
    return round(mine / other, 3) if other else None


Replay = Callable[[Crowd, PolicyName], tuple[dict[str, Any], list[float]]]


def run_all(made: Iterator[Crowd], replay: Replay) -> list[dict[str, Any]]:
    """Every crowd under every policy."""
    results = []
    for crowd in made:
        runs = {policy: replay(crowd, policy) for policy in POLICIES}
        for policy, (found, _) in runs.items():
            print(
                f"{crowd.name:14} {policy:19} good {found['good_share']:6.1%}  p50 {found['latency_s']['p50']:8.2f} s  "
                f"p99 {found['latency_s']['p99']:8.2f} s  small p95 {found['small_latency_s']['p95']:7.2f} s  "
                f"busy {found['utilisation']:.0%}",
                flush=True,
            )
        results.append(
            {
                "arrivals": crowd.arrivals,
                "load": crowd.load,
                "policies": {policy: found for policy, (found, _) in runs.items()},
                **compared(runs),
            }
        )
    return results


# -- measured ------------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> None:
    """Real time, real networks."""
    import torch

    from engine.calibration import calibrated
    from engine.config import EngineConfig
    from engine.cost_meter import CostMeter
    from engine.engine import FluxEngine
    from engine.memory import MEMORY_PROFILES
    from engine.request import Failed, Finished, ImageRequest, Reference
    from engine.runner import FluxRunner
    from engine.weights.load import load_networks
    from engine.weights.untrained import write_untrained

    profile = load_profile(arguments.profile)
    if arguments.cpu_threads is not None:
        torch.set_num_threads(arguments.cpu_threads)
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
            max_waiting=10_000,
            max_queued_device_s=1e9,
        )
        networks = load_networks(
            profile, folder, device=config.device, dtype=config.dtype, memory=MEMORY_PROFILES[config.memory]
        )
    runner = FluxRunner(networks, config)
    cost = calibrated(runner, profile, config, clock=time.perf_counter)
    mix = _mix(arguments)

    def replay(crowd: Crowd, policy: PolicyName) -> tuple[dict[str, Any], list[float]]:
        engine = FluxEngine(dataclasses.replace(config, policy=policy), runner, meter=CostMeter(cost))
        waiting = collections.deque(enumerate(crowd.trace))
        done_s: dict[int, float] = {}
        start_s = time.perf_counter()
        while waiting or engine.has_work:
            now_s = time.perf_counter() - start_s
            while waiting and waiting[0][1].at_s <= now_s:
                number, arrival = waiting.popleft()
                engine.submit(
                    ImageRequest(
                        request_id=str(number),
                        prompt=f"person {arrival.person} in a new picture",
                        reference=Reference(crop=_face(arrival.person), key=f"person {arrival.person}"),
                        width_px=arrival.width_px,
                        height_px=arrival.height_px,
                        num_steps=arrival.num_steps,
                        cfg=arrival.cfg,
                        seed=arrival.seed,
                    )
                )
            if not engine.has_work:
                time.sleep(max(0.0, waiting[0][1].at_s - (time.perf_counter() - start_s)))
                continue
            for event in engine.step():
                assert not isinstance(event, Failed), event
                if isinstance(event, Finished):
                    done_s[int(event.request_id)] = time.perf_counter() - start_s
        latencies_s = [done_s[number] - arrival.at_s for number, arrival in enumerate(crowd.trace)]
        stats = engine.stats()
        found = summary(
            crowd.trace,
            latencies_s,
            [alone_seconds(arrival, profile, cost) for arrival in crowd.trace],
            ended_s=time.perf_counter() - start_s,
            busy_s=stats.device_s,
        )
        error = stats.cost_model_error
        found["cost_model_error"] = None if error is None else round(error, 4)
        found["requests_per_step"] = round(stats.num_sample_steps / stats.num_steps, 2)
        return found, latencies_s

    made = crowds(
        profile, cost, mix, loads=arguments.loads, requests=arguments.requests, num_devices=1, seed=arguments.seed
    )
    load_before = os.getloadavg()[0]
    result = {
        "command": " ".join(["python -m benchmarks.scheduler", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or "CPU",
        "num_cpus": os.cpu_count(),
        "torch": torch.__version__,
        "load_average_before": round(load_before, 2),
        "profile": profile.name,
        "mix": _mix_as_json(mix),
        "max_batch_tokens": config.max_batch_tokens,
        "max_batch_samples": config.max_batch_samples,
        "cost_model": cost.to_dict(),
        "crowds": run_all(made, replay),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def _face(person: int) -> Any:
    return np.random.default_rng(person).integers(0, 256, (224, 224, 3), dtype=np.uint8)


# -- simulated -----------------------------------------------------------------------------------------------------


def simulate(arguments: argparse.Namespace) -> None:
    """Simulated time, the same decisions."""
    measured = json.loads((arguments.measured or arguments.full_size).read_text())
    if arguments.full_size:
        measured = as_measured(measured)
    profile, cost = load_profile(measured["profile"]), CostModel.from_dict(measured["cost_model"])
    mix = _mix_from_json(measured["mix"])
    budget = StepBudget(max_samples=measured["max_batch_samples"], max_tokens=measured["max_batch_tokens"])
    fleets = []
    for num_replicas in arguments.replicas:

        def replay(
            crowd: Crowd, policy: PolicyName, num_replicas: int = num_replicas
        ) -> tuple[dict[str, Any], list[float]]:
            settings = FleetSettings(
                profile=profile, cost=cost, policy=policy, budget=budget, num_replicas=num_replicas, tick_s=1e6
            )
            run = Fleet(settings).run(crowd.trace)
            latencies_s = [outcome.latency_s for outcome in run.outcomes if outcome.latency_s is not None]
            found = summary(
                crowd.trace,
                latencies_s,
                [outcome.alone_s for outcome in run.outcomes],
                ended_s=run.ended_s,
                busy_s=run.busy_s,
                num_devices=num_replicas,
            )
            return found, latencies_s

        print(f"{num_replicas} replicas")
        made = crowds(
            profile,
            cost,
            mix,
            loads=arguments.loads,
            requests=arguments.requests * num_replicas if arguments.per_replica else arguments.requests,
            num_devices=num_replicas,
            seed=arguments.seed,
        )
        fleets.append({"num_replicas": num_replicas, "crowds": run_all(made, replay)})
    result = {
        "command": " ".join(["python -m benchmarks.scheduler", *sys.argv[1:]]),
        "basis": str(arguments.measured or arguments.full_size),
        "profile": profile.name,
        "rankings": ranking_agreement(measured["crowds"], fleets[0]["crowds"]),
        "fleets": fleets,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["rankings"], indent=1))


def as_measured(full_size: dict[str, Any]) -> dict[str, Any]:
    """What ``measure`` would write but for its crowds, from the step times of :mod:`benchmarks.full_size`."""
    profile = load_profile("flux-dev")
    samples = []
    for name, found in full_size["speed"].items():
        if " batch " in name:
            side_px, batch = int(name.split("x")[0]), int(name.rsplit(" ", 1)[1])
            tokens = profile.t5.max_tokens + profile.size.drawn_size(side_px, side_px).num_tokens
            samples.append((step_features([tokens] * batch), found["ours"]["median_ms"] / 1e3))
    first, again = full_size["request"]["first"], full_size["request"]["again"]
    native_px = profile.size.native_width_px * profile.size.native_height_px
    free = LinearCost.of(0.0)
    cost = CostModel(
        step=LinearCost.fitted(samples),
        text=LinearCost.of(first["encode_s"] - again["encode_s"]),  # with the reference's, which came along
        vision=free,
        decode=LinearCost.of(0.0, again["decode_s"] / native_px, 0.0),
    )
    return {
        "profile": profile.name,
        "device": full_size["device"],
        "mix": _mix_as_json(Mix()),
        "max_batch_tokens": 8192,
        "max_batch_samples": 8,
        "cost_model": cost.to_dict(),
        "crowds": [],
    }


def ranking_agreement(measured: Sequence[dict[str, Any]], simulated: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether the simulation orders the policies by goodput as the measurement did, crowd by crowd.

    Two policies whose goodputs are within 5 % of each other in either are taken as equal.
    """
    by_crowd = {(crowd["arrivals"], crowd["load"]): crowd["policies"] for crowd in simulated}
    num_pairs = num_agreeing = 0
    for crowd in measured:
        twin = by_crowd.get((crowd["arrivals"], crowd["load"]))
        if twin is None:
            continue
        for i, one in enumerate(POLICIES):
            for other in POLICIES[i + 1 :]:
                order = _order(crowd["policies"], one, other)
                twins_order = _order(twin, one, other)
                num_pairs += 1
                num_agreeing += order == twins_order or 0 in (order, twins_order)
    return {"num_pairs": num_pairs, "num_agreeing": num_agreeing}


def _order(policies: dict[str, Any], one: str, other: str) -> int:
    a, b = policies[one]["goodput_per_s"], policies[other]["goodput_per_s"]
    return 0 if abs(a - b) <= 0.05 * max(a, b) else (1 if a > b else -1)


# -- plots ---------------------------------------------------------------------------------------------------------

COLOURS = {"first_come": "#8a8a8a", "static_batches": "#d59b5b", "shortest_remaining": "#39678c"}
TITLES = {
    "first_come": "one after another",
    "static_batches": "static batches",
    "shortest_remaining": "step by step, shortest remaining first",
}


def plot(arguments: argparse.Namespace) -> None:
    """Shares within the SLO and small requests' p95 by load, measured as lines and simulated as dots."""
    from matplotlib.figure import Figure

    measured = json.loads(arguments.measured.read_text())
    simulated = json.loads(arguments.simulated.read_text())
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    for column, arrivals in enumerate(get_args(ArrivalProcess)):
        for policy in POLICIES:
            style = {"color": COLOURS[policy], "markersize": 5}
            for source, marks in ((measured["crowds"], "-"), (simulated["fleets"][0]["crowds"], "o")):
                points = [(c["load"], c["policies"][policy]) for c in source if c["arrivals"] == arrivals]
                loads = [100 * load for load, _ in points]
                label = TITLES[policy] if marks == "-" else None
                axes[0, column].plot(
                    loads, [100 * found["good_share"] for _, found in points], marks, label=label, **style
                )
                axes[1, column].plot(loads, [found["small_latency_s"]["p95"] for _, found in points], marks, **style)
        axes[0, column].set_title({"poisson": "Poisson arrivals", "bursts": "bursts of eight"}[arrivals])
        axes[1, column].set_xlabel("load, % of the device drawing one after another")
        axes[1, column].set_yscale("log")
    axes[0, 0].set_ylabel("% of pictures within 3 × their time alone")
    axes[1, 0].set_ylabel("p95 of small pictures, s")
    axes[0, 0].set_ylim(0, 102)
    axes[0, 1].set_ylim(0, 102)
    axes[0, 0].legend(frameon=False, fontsize=8)
    for axis in axes.flat:
        axis.grid(color="#e5e5e5")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{measured['profile']} on {measured['device']}: lines measured, dots simulated with the measured cost model",
        fontsize=10,
    )
    figure.savefig(arguments.out)


# -- command line --------------------------------------------------------------------------------------------------


def _mix(arguments: argparse.Namespace) -> Mix:
    return Mix(sides_px=arguments.sides, num_steps=arguments.steps, cfg=arguments.cfg)


def _mix_as_json(mix: Mix) -> dict[str, Any]:
    return {"sides_px": [*mix.sides_px.items()], "num_steps": [*mix.num_steps.items()], "cfg": [*mix.cfg.items()]}


def _mix_from_json(values: dict[str, Any]) -> Mix:
    return Mix(sides_px=dict(values["sides_px"]), num_steps=dict(values["num_steps"]), cfg=dict(values["cfg"]))


def main() -> int:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    real = commands.add_parser("measure")
    real.set_defaults(run=measure)
    real.add_argument("--profile", default="embedded")
    real.add_argument("--model-dir", help="default: a temporary folder, with random weights")
    real.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    real.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    real.add_argument("--cpu-threads", type=int)
    real.add_argument("--max-batch-tokens", type=int, default=8192)
    real.add_argument("--requests", type=int, default=40, help="a crowd, about (default %(default)s)")
    defaults = Mix(sides_px=CPU_SIDES)
    for name in ("sides", "steps", "cfg"):
        field = {"sides": "sides_px", "steps": "num_steps", "cfg": "cfg"}[name]
        kind = float if name == "cfg" else int
        real.add_argument(f"--{name}", type=traces.weights(kind), default=getattr(defaults, field), metavar="V:W,…")

    made_up = commands.add_parser("simulate")
    made_up.set_defaults(run=simulate)
    basis = made_up.add_mutually_exclusive_group(required=True)
    basis.add_argument("--measured", type=Path, help="what `measure` wrote: cost model, mix, budget")
    basis.add_argument(
        "--full-size", type=Path, help="what benchmarks.full_size wrote: its step times make the cost model"
    )
    made_up.add_argument("--requests", type=int, default=1000, help="a crowd, about (default %(default)s)")
    made_up.add_argument("--per-replica", action="store_true", help="so many for every replica of a fleet")
    made_up.add_argument("--replicas", type=_numbers(int), default=(1, 4, 16, 64), metavar="N,…")

    drawn = commands.add_parser("plot")
    drawn.set_defaults(run=plot)
    drawn.add_argument("--measured", type=Path, required=True)
    drawn.add_argument("--simulated", type=Path, required=True)

    for command in (real, made_up):
        command.add_argument("--loads", type=_numbers(float), default=LOADS, metavar="X,…")
        command.add_argument("--seed", type=int, default=0)
    for command in (real, made_up, drawn):
        command.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.run(arguments)
    return 0


def _numbers(kind: type[int] | type[float]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(kind(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
