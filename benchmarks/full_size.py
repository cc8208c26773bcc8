"""FLUX.1-dev at true size with random weights: does it load, is it right, how fast is a step and a whole request.

    python -m benchmarks.full_size --model-dir /tmp/flux-dev --out results.json

Sections, each timed and reported on its own, so that one that fails does not take the others with it:

* ``write``   files of the exact names, keys and shapes, with random weights
* ``load``    the production loader: seconds by network, cold (page cache dropped, where that is allowed) and warm
* ``parity``  one forward pass: ours and diffusers' in bfloat16 with the same weights, both against ours in float32;
              fused kernels against formulas; recorded passes, one face after another, against those run as written
* ``speed``   milliseconds a step: ours as served, not recorded, by formulas, and diffusers' eager, in one
              run; batches of several sizes
* ``request`` a complete request of 20 steps through the engine, by stage
* ``memory``  peak device memory of every memory profile, against the plan

Any profile can be given, so that the script is tried out on a laptop first.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import platform
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.full_size_pass import Batch, diffusers_forward, diffusers_model, forward, packed, random_batch, recorded
from benchmarks.progress import tell
from engine.config import DeviceName, DtypeName, EngineConfig
from engine.engine import FluxEngine, load_engine
from engine.memory import MEMORY_PROFILES
from engine.model.packing import Packing
from engine.profile import DrawnSize, ModelProfile, load_profile
from engine.request import Finished, ImageRequest, Reference
from engine.runtime.choice import formulas_only, fused_passes
from engine.weights.load import Networks, load_networks
from engine.weights.plan import memory_plans
from engine.weights.untrained import write_untrained

STARTED_S = time.perf_counter()
GIB = 2**30


@dataclasses.dataclass
class Bench:
    """What every section needs."""

    profile: ModelProfile
    model_dir: str
    device: DeviceName
    dtype: DtypeName
    repeats: int
    results: dict[str, Any]

    @property
    def is_cuda(self) -> bool:
        return self.device == "cuda"

    def config(self, **changes: Any) -> EngineConfig:
        return EngineConfig(
            profile=self.profile, model_dir=self.model_dir, device=self.device, dtype=self.dtype, **changes
        )

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def release(self) -> None:
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        return round(torch.cuda.max_memory_allocated() / GIB, 2) if self.is_cuda else None


@contextmanager
def timed(into: dict[str, Any], name: str) -> Iterator[None]:
    started_s = time.perf_counter()
    yield
    into[name] = round(time.perf_counter() - started_s, 3)


def host_peak_gib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 2)


def write(bench: Bench, into: dict[str, Any]) -> None:
    with timed(into, "seconds"):
        write_untrained(bench.profile, bench.model_dir, device=bench.device, on_file=tell)
    into["gib"] = {path.name: round(path.stat().st_size / GIB, 3) for path in sorted(Path(bench.model_dir).iterdir())}
    bench.release()


def load(bench: Bench, into: dict[str, Any]) -> None:
    into["host_peak_gib_before"] = host_peak_gib()
    for state in ("cold", "warm"):
        if state == "cold":
            into["is_page_cache_dropped"] = drop_page_cache()
        stages: dict[str, float] = {}
        record: dict[str, Any] = {"by_network_s": stages}
        into[state] = record
        bench.release()
        with timed(record, "seconds"):
            networks = networks_of(bench, stages)
        record["device_gib"] = bench.peak_gib()
        del networks
        bench.release()
    into["host_peak_gib"] = host_peak_gib()


def drop_page_cache() -> bool:
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    return True


def networks_of(bench: Bench, stages: dict[str, float] | None = None, *, dtype: DtypeName | None = None) -> Networks:
    def note(name: str, seconds: float) -> None:
        if stages is not None:
            stages[name] = round(seconds, 3)

    return load_networks(
        bench.profile,
        bench.model_dir,
        device=bench.device,
        dtype=dtype or bench.dtype,
        on_stage=note,
    )


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def half_of(size: DrawnSize) -> DrawnSize:
    return DrawnSize(width_px=size.width_px // 2, height_px=size.height_px // 2)


def can_compare(bench: Bench) -> bool:
    """diffusers tells 16 adapter tokens from 4 by FLUX.1-dev's own width only."""
    return bench.profile.transformer.context_in_dim == 4096


def parity(bench: Bench, into: dict[str, Any]) -> None:
    size = bench.profile.size.native
    networks = networks_of(bench)
    batch = random_batch(bench.profile, networks, size, 1)
    ours = forward(networks.flux, batch)
    with formulas_only():
        by_formulas = forward(networks.flux, batch)
    into["is_fused"] = bench.is_cuda and fused_passes() is not None
    into["fused_vs_formulas"] = relative_error(ours, by_formulas)
    into["recorded"] = faces_in_turn(bench, networks)
    into["output_std"] = float(ours.float().std())
    into["is_finite"] = bool(torch.isfinite(ours).all())
    if can_compare(bench):
        model = diffusers_model(bench.profile, bench.model_dir, networks)
        theirs = diffusers_forward(model, batch)
        into["ours_vs_diffusers"] = relative_error(ours, theirs)
        del model
    bare = dataclasses.replace(batch, prompt=batch.prompt.scaled(0.0))
    into["adapter_moves_output_by"] = relative_error(forward(networks.flux, bare), ours)
    kept = {name: getattr(batch, name).float() for name in ("img", "txt", "vec", "embedding")}
    del networks, batch, bare
    bench.release()
    exact_networks = networks_of(bench, dtype="float32")
    exact_batch = random_batch(bench.profile, exact_networks, size, 1)
    prompt = exact_networks.adapter.encode(kept["embedding"])
    exact = forward(exact_networks.flux, dataclasses.replace(exact_batch, **kept, prompt=prompt))
    into["ours_vs_float32"] = relative_error(ours, exact)
    into["formulas_vs_float32"] = relative_error(by_formulas, exact)
    if can_compare(bench):
        into["diffusers_vs_float32"] = relative_error(theirs, exact)


@torch.inference_mode()
def faces_in_turn(bench: Bench, networks: Networks) -> dict[str, Any]:
    """Recorded passes for one face, another, and the first again: whether each has the bits of the pass as written."""
    full = bench.profile.size.native
    half = half_of(full)
    found: dict[str, Any] = {}
    for size, num in ((full, 1), (half, 1), (half, 3)):
        batch = random_batch(bench.profile, networks, size, num)
        other = dataclasses.replace(
            batch,
            prompt=networks.adapter.encode(batch.embedding.flip(-1)).scaled(0.7),
            txt=batch.txt.flip(-1),
            img=batch.img.flip(-1),
            sigma=0.5 * batch.sigma,
        )
        passes = recorded(bench.profile, networks.flux, batch)
        is_same = [torch.equal(forward(passes, one), forward(networks.flux, one)) for one in (batch, other, batch)]
        found[f"{size.width_px}x{size.height_px} batch {num}"] = {
            "num_recordings": passes.num_recordings,
            "is_same_bits": is_same,
        }
        del passes
        bench.release()
    return found


def milliseconds(bench: Bench, work: Callable[[], object]) -> dict[str, float]:
    """Median and spread of a call, after warm-up; each timed to the device's end."""
    for _ in range(2):
        work()
    bench.synchronize()
    times = []
    for _ in range(bench.repeats):
        started_s = time.perf_counter()
        work()
        bench.synchronize()
        times.append(1e3 * (time.perf_counter() - started_s))
    return {
        "median_ms": round(statistics.median(times), 2),
        "min_ms": round(min(times), 2),
        "max_ms": round(max(times), 2),
        "repeats": bench.repeats,
    }


def speed(bench: Bench, into: dict[str, Any]) -> None:
    networks = networks_of(bench)
    model = diffusers_model(bench.profile, bench.model_dir, networks) if can_compare(bench) else None
    full = bench.profile.size.native
    half = half_of(full)
    for size, counts in ((full, (1, 2)), (half, (1, 2, 4, 8))):
        for num in counts:
            batch = random_batch(bench.profile, networks, size, num)
            record = our_ways(bench, networks, batch)
            if model is not None:
                record["diffusers"] = milliseconds(bench, functools.partial(diffusers_forward, model, batch))
                record["diffusers_over_ours"] = round(record["diffusers"]["median_ms"] / record["ours"]["median_ms"], 3)
            into[f"{size.width_px}x{size.height_px} batch {num}"] = record
    sizes = (full, half, half)
    packing = Packing(num_txt=bench.profile.t5.max_tokens, num_img=tuple(size.num_tokens for size in sizes))
    mixed = packed([random_batch(bench.profile, networks, size, 1) for size in sizes], packing)
    into["packed: one full, two half"] = our_ways(bench, networks, mixed)


def our_ways(bench: Bench, networks: Networks, batch: Batch) -> dict[str, Any]:
    """As served; handed over kernel by kernel; and without fused kernels."""
    passes = recorded(bench.profile, networks.flux, batch)
    found: dict[str, Any] = {"ours": milliseconds(bench, functools.partial(forward, passes, batch))}
    del passes
    bench.release()
    found["not recorded"] = milliseconds(bench, functools.partial(forward, networks.flux, batch))
    with formulas_only():
        found["formulas"] = milliseconds(bench, functools.partial(forward, networks.flux, batch))
    return found


def request_through_the_engine(bench: Bench, into: dict[str, Any]) -> None:
    with timed(into, "load_s"):
        engine = load_engine(bench.config())
    with timed(into, "warm_up_s"):
        engine.warm_up()
    into["process_start_to_ready_s"] = round(time.perf_counter() - STARTED_S, 2)
    for name in ("first", "again", "other prompt and face"):
        into[name] = drawn(engine, bench, seed=name.startswith("other"))
    into["device_peak_gib"] = bench.peak_gib()


def drawn(engine: FluxEngine, bench: Bench, *, seed: int, num_steps: int = 20) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    crop = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    size = bench.profile.size.native
    started_s = time.perf_counter()
    engine.submit(
        ImageRequest(
            request_id="r",
            prompt=f"A professional AI influencer portrait {seed}",
            reference=Reference(crop=crop, key=str(seed)),
            width_px=size.width_px,
            height_px=size.height_px,
            num_steps=num_steps,
        )
    )
    events = []
    while engine.has_work:
        events = engine.step()
    finished = events[-1]
    assert isinstance(finished, Finished), finished
    stages = {name: round(value, 3) for name, value in dataclasses.asdict(finished.stages).items()}
    return {
        "seconds": round(time.perf_counter() - started_s, 3),
        **stages,
        "step_ms": round(1e3 * finished.stages.denoise_s / num_steps, 1),
        "device_s": round(finished.device_s, 3),
        "image_std": round(float(finished.image.std()), 1),
    }


def memory(bench: Bench, into: dict[str, Any]) -> None:
    for name, plan in memory_plans(bench.config()).items():
        record: dict[str, Any] = {"plan": plan.arithmetic(), "plan_gib": round(plan.num_bytes / GIB, 2)}
        into[name] = record
        bench.release()
        with timed(record, "load_s"):
            engine = load_engine(bench.config(memory=name))
        record["device_gib_after_load"] = bench.peak_gib()
        engine.warm_up()
        record["first"] = drawn(engine, bench, seed=0, num_steps=4)
        record["again"] = drawn(engine, bench, seed=0, num_steps=4)
        record["device_peak_gib"] = bench.peak_gib()
        del engine
        bench.release()
    assert set(into) == set(MEMORY_PROFILES)


SECTIONS: dict[str, Callable[[Bench, dict[str, Any]], None]] = {
    "write": write,
    "load": load,
    "parity": parity,
    "speed": speed,
    "request": request_through_the_engine,
    "memory": memory,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="flux-dev")
    parser.add_argument("--model-dir", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="bfloat16" if torch.cuda.is_available() else "float32"
    )
    arguments = parser.parse_args()

    results: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.full_size", *sys.argv[1:]]),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU",
        "weights": "random, of the exact shapes",
    }
    bench = Bench(
        profile=load_profile(arguments.profile),
        model_dir=arguments.model_dir,
        device=arguments.device,
        dtype=arguments.dtype,
        repeats=arguments.repeats,
        results=results,
    )
    has_failed = False
    for name in arguments.sections.split(","):
        section: dict[str, Any] = {}
        results[name] = section
        print(f"== {name}", flush=True)
        try:
            with timed(section, "section_s"):
                SECTIONS[name](bench, section)
        except Exception as error:
            has_failed = True
            section["error"] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        bench.release()
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")
        print(json.dumps(section, indent=1), flush=True)
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
