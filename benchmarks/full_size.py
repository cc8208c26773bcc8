"""FLUX.1-dev at true size with random weights: does it load, is it right, how fast is a step and a whole request.

    python -m benchmarks.full_size --model-dir /tmp/flux-dev --out results.json

Sections, each timed and reported on its own, so that one that fails does not take the others with it:

* ``write``   files of the exact names, keys and shapes, with random weights
* ``load``    the production loader: seconds by network, cold (page cache dropped, where that is allowed) and warm
* ``parity``  one forward pass: ours and diffusers' in bfloat16 with the same weights, both against ours in float32
* ``speed``   milliseconds a step, ours and diffusers' eager in the same run; batches of several sizes
* ``request`` a complete request of 20 steps through the engine, by stage
* ``memory``  peak device memory of every memory profile, against the plan

Any profile can be given, so that the script is tried out on a laptop first.
"""

from __future__ import annotations

import argparse
import dataclasses
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

from engine.config import EngineConfig
from engine.engine import FluxEngine, load_engine
from engine.memory import MEMORY_PROFILES
from engine.model.image_prompt import ImagePrompt
from engine.model.packing import Packing
from engine.profile import DrawnSize, ModelProfile, load_profile
from engine.request import Finished, ImageRequest, Reference
from engine.sampling import latents
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
    device: str
    dtype: str
    repeats: int
    results: dict[str, Any]

    @property
    def is_cuda(self) -> bool:
        return self.device == "cuda"

    def config(self, **changes: Any) -> EngineConfig:
        return EngineConfig(
            profile=self.profile, model_dir=self.model_dir, device=self.device, dtype=self.dtype, **changes
        )  # type: ignore[arg-type]

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
        write_untrained(bench.profile, bench.model_dir, device=bench.device, on_file=print)  # type: ignore[arg-type]
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


def networks_of(bench: Bench, stages: dict[str, float] | None = None, *, dtype: str | None = None) -> Networks:
    def note(name: str, seconds: float) -> None:
        if stages is not None:
            stages[name] = round(seconds, 3)

    return load_networks(
        bench.profile,
        bench.model_dir,
        device=bench.device,  # type: ignore[arg-type]
        dtype=dtype or bench.dtype,  # type: ignore[arg-type]
        on_stage=note,
    )


@dataclasses.dataclass
class Batch:
    """Random inputs of a forward pass."""

    img: torch.Tensor
    ids: torch.Tensor
    txt: torch.Tensor
    sigma: torch.Tensor
    vec: torch.Tensor
    guidance: torch.Tensor
    prompt: ImagePrompt
    embedding: torch.Tensor
    packing: Packing


@torch.inference_mode()
def batch_of(bench: Bench, networks: Networks, size: DrawnSize, num: int, dtype: torch.dtype) -> Batch:
    profile, device = bench.profile, bench.device
    generator = torch.Generator(device).manual_seed(1)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    embedding = randn(num, profile.clip_vision.projection_dim)
    prompt = networks.adapter.encode(embedding.to(dtype)).scaled(1.0)
    return Batch(
        img=randn(num, size.num_tokens, profile.transformer.in_channels).to(dtype),
        ids=latents.position_ids(size).to(device).expand(num, -1, -1),
        txt=randn(num, profile.t5.max_tokens, profile.transformer.context_in_dim).to(dtype),
        sigma=torch.full((num,), 0.5, device=device),
        vec=randn(num, profile.transformer.vec_in_dim).to(dtype),
        guidance=torch.full((num,), 2.0, device=device),  # exact in bfloat16, which diffusers rounds it to
        prompt=prompt,
        embedding=embedding.to(dtype),
        packing=Packing(num_txt=profile.t5.max_tokens, num_img=(size.num_tokens,) * num),
    )


@torch.inference_mode()
def forward(networks: Networks, batch: Batch) -> torch.Tensor:
    out: torch.Tensor = networks.flux(
        batch.img,
        batch.ids,
        batch.txt,
        batch.sigma,
        batch.vec,
        batch.guidance,
        packing=batch.packing,
        image_prompt=batch.prompt,
    )
    return out


def diffusers_model(bench: Bench, networks: Networks) -> Any:
    """diffusers' transformer over the very same tensors, with its adapter processors."""
    from tests.oracles.diffusers_flux import empty_diffusers_flux, load_adapter_through_diffusers, to_diffusers

    params = bench.profile.transformer
    with torch.device("meta"):
        model = empty_diffusers_flux(params)
    model.load_state_dict(to_diffusers(networks.flux.state_dict(), params), strict=True, assign=True)
    pipeline = load_adapter_through_diffusers(model, bench.model_dir, bench.profile.files.adapter)
    pipeline.set_ip_adapter_scale(1.0)
    return model.to(bench.device, next(networks.flux.parameters()).dtype).eval()


@torch.inference_mode()
def diffusers_forward(model: Any, batch: Batch) -> torch.Tensor:
    out: torch.Tensor = model(
        hidden_states=batch.img,
        encoder_hidden_states=batch.txt,
        pooled_projections=batch.vec,
        timestep=batch.sigma,
        guidance=batch.guidance,
        img_ids=batch.ids[0],
        txt_ids=batch.ids.new_zeros(batch.txt.shape[1], 3),
        joint_attention_kwargs={"ip_adapter_image_embeds": [batch.embedding[:, None]]},
        return_dict=False,
    )[0]
    return out


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def native(bench: Bench) -> DrawnSize:
    size = bench.profile.size
    return DrawnSize(width_px=size.native_width_px, height_px=size.native_height_px)


def can_compare(bench: Bench) -> bool:
    """diffusers tells 16 adapter tokens from 4 by FLUX.1-dev's own width only."""
    return bench.profile.transformer.context_in_dim == 4096


def parity(bench: Bench, into: dict[str, Any]) -> None:
    size = native(bench)
    networks = networks_of(bench)
    dtype = networks.flux.img_in.weight.dtype
    batch = batch_of(bench, networks, size, 1, dtype)
    ours = forward(networks, batch)
    into["output_std"] = float(ours.float().std())
    into["is_finite"] = bool(torch.isfinite(ours).all())
    if can_compare(bench):
        model = diffusers_model(bench, networks)
        theirs = diffusers_forward(model, batch)
        into["ours_vs_diffusers"] = relative_error(ours, theirs)
        del model
    bare = dataclasses.replace(batch, prompt=batch.prompt.scaled(0.0))
    into["adapter_moves_output_by"] = relative_error(forward(networks, bare), ours)
    kept = {name: getattr(batch, name).float() for name in ("img", "txt", "vec", "embedding")}
    del networks, batch, bare
    bench.release()
    exact_networks = networks_of(bench, dtype="float32")
    exact_batch = batch_of(bench, exact_networks, size, 1, torch.float32)
    prompt = exact_networks.adapter.encode(kept["embedding"])
    exact = forward(exact_networks, dataclasses.replace(exact_batch, **kept, prompt=prompt))
    into["ours_vs_float32"] = relative_error(ours, exact)
    if can_compare(bench):
        into["diffusers_vs_float32"] = relative_error(theirs, exact)


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
    dtype = networks.flux.img_in.weight.dtype
    model = diffusers_model(bench, networks) if can_compare(bench) else None
    full = native(bench)
    half = DrawnSize(width_px=full.width_px // 2, height_px=full.height_px // 2)
    for size, counts in ((full, (1, 2)), (half, (1, 2, 4, 8))):
        for num in counts:
            batch = batch_of(bench, networks, size, num, dtype)
            record: dict[str, Any] = {"ours": milliseconds(bench, lambda batch=batch: forward(networks, batch))}
            if model is not None:
                record["diffusers"] = milliseconds(bench, lambda batch=batch: diffusers_forward(model, batch))
                record["diffusers_over_ours"] = round(record["diffusers"]["median_ms"] / record["ours"]["median_ms"], 3)
            into[f"{size.width_px}x{size.height_px} batch {num}"] = record
    sizes = (full, half, half)
    mixed = Packing(num_txt=bench.profile.t5.max_tokens, num_img=tuple(size.num_tokens for size in sizes))
    singles = [batch_of(bench, networks, size, 1, dtype) for size in sizes]
    packed = dataclasses.replace(
        singles[0],
        img=mixed.pack([single.img[0] for single in singles]),
        ids=mixed.pack([single.ids[0] for single in singles]),
        **{
            name: torch.cat([getattr(single, name) for single in singles])
            for name in ("txt", "sigma", "vec", "guidance")
        },
        prompt=ImagePrompt.stack([single.prompt for single in singles]),
        packing=mixed,
    )
    into["packed: one full, two half"] = {"ours": milliseconds(bench, lambda: forward(networks, packed))}


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
    size = native(bench)
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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
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
