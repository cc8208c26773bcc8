"""One driver for all stages of the training.

    python -m embedded.train.run --stage STAGE --work DIR --out DIR --seconds N

``--work`` holds what stages hand to each other (pictures, checkpoints: gigabytes); ``--out`` gets what is to be kept
(model parts, sheets, reports: megabytes). A stage that was stopped goes on where it was. Several GPUs: start it with
``torchrun --standalone --nproc-per-node N -m embedded.train.run …``; the data stage uses processor cores only.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from embedded.dataset import Plan, generate, gl_device
from embedded.people import Split
from embedded.train import export
from embedded.train.attributes import train_classifier, write_classifier
from embedded.train.autoencoder import (
    AutoencoderSettings,
    encoded,
    factors,
    peak_signal_to_noise_db,
    train_autoencoder,
)
from embedded.train.batches import Batches
from embedded.train.corpus import Corpus, load_corpus, whole_shards
from embedded.train.distill import DistillSettings, distill
from embedded.train.flow import FlowSettings, train_flow
from embedded.train.networks import Learner
from embedded.train.sample import measured_on, sheet
from embedded.train.world import World
from engine.model.autoencoder import LatentDecoder, build_autoencoder
from engine.profile import ModelProfile, load_profile

DRAWING_PATIENCE_S = 150.0
"""How long the autoencoder's stage waits for its first shards."""

TEST_SHARDS = 200
"""The autoencoder is measured on the unseen people in the first of them: about a thousand pictures."""

_TRAIN_AND_TEST: tuple[Split, Split] = ("train", "test")

STAGES = ("data", "autoencoder", "attributes", "flow", "distill", "draw")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folders:
    """Where a run keeps its things."""

    work: Path
    out: Path

    @property
    def data(self) -> Path:
        """Drawn people."""
        return self.work / "data"

    @property
    def autoencoder(self) -> Path:
        """The autoencoder's file and what is known of it."""
        return self.work / "autoencoder"

    @property
    def checkpoint(self) -> Path:
        """State of the flow stage."""
        return self.work / "flow.pt"

    def model(self, stage: str) -> Path:
        """The six files after a stage: ``flow`` or ``distill``."""
        return self.work / f"model-{stage}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What every stage did, for ``provenance.json``; kept in the work folder between stages."""

    path: Path

    def read(self) -> dict[str, Any]:
        """All stages so far."""
        known: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        return known

    def add(self, stage: str, content: dict[str, Any]) -> dict[str, Any]:
        """Note one stage. Returns all."""
        known = self.read() | {stage: content}
        self.path.write_text(json.dumps(known, indent=1) + "\n")
        return known


def stage_data(folders: Folders, arguments: argparse.Namespace) -> None:
    """Draw people until all are there or the time is over. Whole shards stay."""
    if importlib.util.find_spec("moderngl") is None:
        raise SystemExit("drawing needs moderngl: pip install moderngl")
    plan = Plan(
        out=folders.data,
        body=arguments.body,
        seed=arguments.data_seed,
        first_identity=0,
        num_identities=arguments.identities,
        num_views=arguments.views,
        identities_per_shard=arguments.identities_per_shard,
    )
    began_s, done = time.monotonic(), 0
    world = World(rank=0, size=1, device=torch.device("cpu"))
    for count, left in generate(plan, arguments.workers, gl_device(arguments.gl_device)):
        done += count
        seconds = time.monotonic() - began_s
        if left % 20 == 0:
            world.say(f"data: {done} pictures, {done / seconds:.0f} a second, {left} shards left")
        if seconds > arguments.seconds:
            break
    (folders.data / "DONE").write_text(f"{done} pictures in {time.monotonic() - began_s:.0f} s\n")


def stage_autoencoder(folders: Folders, arguments: argparse.Namespace, world: World) -> None:
    """Train the autoencoder, measure its latents, write it."""
    _wait_for_shards(folders.data, arguments.wait_shards, world)
    profile = load_profile("embedded")
    given = _given(arguments, ae_batch="batch", kl_weight="kl_weight", learning_rate="learning_rate")
    settings = dataclasses.replace(AutoencoderSettings(), **given)
    initial = _read_autoencoder(profile, arguments.initial) if arguments.initial else None
    network, measured = train_autoencoder(
        world,
        profile,
        folders.data,
        settings,
        seconds=arguments.seconds,
        seed=arguments.seed,
        initial=initial,
        max_steps=arguments.max_steps,
    )
    test = load_corpus(folders.data, "test", profile, world.device, seed=arguments.data_seed, max_shards=TEST_SHARDS)
    latents = encoded(network, test.images, world.alone)
    scale, shift = factors(latents)
    profile = export.with_factors(profile, scale, shift)
    measured["test_psnr_db"] = round(peak_signal_to_noise_db(network, test.images[:256], world), 3)
    measured |= {"scale_factor": scale, "shift_factor": shift, "per_channel_std": _channel_stds(latents)}
    world.say(f"autoencoder: {json.dumps(measured)}")
    if world.is_first:
        folders.autoencoder.mkdir(parents=True, exist_ok=True)
        for old in folders.autoencoder.glob("latents-*.pt"):
            old.unlink()
        export.write_network(export.autoencoder_file(network, profile), folders.autoencoder)
        content = measured | {"settings": dataclasses.asdict(settings)}
        (folders.autoencoder / "measured.json").write_text(json.dumps(content, indent=1) + "\n")
        Report(path=folders.work / "report.json").add("autoencoder", content)
        for path in (folders.autoencoder / profile.files.autoencoder, folders.autoencoder / "measured.json"):
            (folders.out / path.name).write_bytes(path.read_bytes())
        drawn = LatentDecoder(network, profile.autoencoder).decode((latents[:8].float() - shift) * scale)
        pair = np.concatenate([test.images[:8].cpu().numpy(), drawn], axis=1)
        _save_picture(np.concatenate(list(pair), axis=1), folders.out / "autoencoder.jpg")
    world.barrier()


def stage_attributes(folders: Folders, arguments: argparse.Namespace, world: World) -> None:
    """Train the judge's classifier."""
    profile = load_profile("embedded")
    corpora = [load_corpus(folders.data, split, profile, world.device, seed=1) for split in _TRAIN_AND_TEST]
    classifier, measured = train_classifier(
        world, *corpora, seconds=arguments.seconds, seed=arguments.seed, max_steps=arguments.max_steps
    )
    world.say(f"attributes: {json.dumps(measured)}")
    if world.is_first:
        write_classifier(classifier, measured, folders.out / "attributes.safetensors")


def stage_flow(folders: Folders, arguments: argparse.Namespace, world: World) -> None:
    """Train all networks, and write them as a model that needs no distillation to be looked at."""
    profile, autoencoder = _autoencoder(folders, world)
    corpus, latents = _with_latents(folders, "train", profile, autoencoder, arguments, world)
    settings = dataclasses.replace(
        FlowSettings(),
        **_given(arguments, **{name: name for name in ("batch", "learning_rate", "looking_batch", "looking_share")}),
    )
    likeness = _given(arguments, likeness_weight="weight", reader_seconds="reader_seconds", reader_batch="reader_batch")
    settings = dataclasses.replace(settings, likeness=dataclasses.replace(settings.likeness, **likeness))
    initial = export.read_model(profile, arguments.initial)[0] if arguments.initial else None
    batches = Batches(corpus, latents, profile, world, seed=arguments.seed + _resumed_at(folders.checkpoint))
    learner, measured = train_flow(
        world,
        profile,
        batches,
        settings,
        seconds=arguments.seconds,
        seed=arguments.seed,
        checkpoint=folders.checkpoint,
        initial=initial,
        max_steps=arguments.max_steps,
        pause_s=arguments.pause_seconds,
    )
    content = measured | {"settings": dataclasses.asdict(settings), "pictures": len(corpus)}
    if arguments.initial:  # what made those networks belongs to what made these
        content["initial"] = json.loads((arguments.initial / export.PROVENANCE).read_text(encoding="utf-8"))
    _finish("flow", content, learner, autoencoder, profile, folders, arguments, world)
    if arguments.distill_seconds and measured["is_whole"]:
        _distill(learner, batches, autoencoder, profile, folders, arguments, world, arguments.distill_seconds)


def stage_distill(folders: Folders, arguments: argparse.Namespace, world: World) -> None:
    """Distil guidance into what the flow stage left."""
    profile, autoencoder = _autoencoder(folders, world)
    teacher, _ = export.read_model(profile, arguments.initial or folders.model("flow"))
    teacher.to(world.device).requires_grad_(False)
    corpus, latents = _with_latents(folders, "train", profile, autoencoder, arguments, world)
    batches = Batches(corpus, latents, profile, world, seed=arguments.seed + 1)
    batches.look(teacher.look)
    _distill(teacher, batches, autoencoder, profile, folders, arguments, world, arguments.seconds)


def _distill(
    teacher: Learner,
    batches: Batches,
    autoencoder: Any,
    profile: ModelProfile,
    folders: Folders,
    arguments: argparse.Namespace,
    world: World,
    seconds: float,
) -> None:
    settings = dataclasses.replace(
        DistillSettings(), **_given(arguments, batch="batch", text_gain="text_gain", image_gain="image_gain")
    )
    student, measured = distill(
        world,
        teacher,
        batches,
        settings,
        seconds=seconds,
        max_steps=arguments.max_steps,
    )
    content = measured | {"settings": dataclasses.asdict(settings)}
    _finish("distill", content, student, autoencoder, profile, folders, arguments, world)


def stage_draw(folders: Folders, arguments: argparse.Namespace, world: World) -> None:
    """Sheets of unseen people with the newest model."""
    profile, autoencoder = _autoencoder(folders, world)
    newest = folders.model("distill") if folders.model("distill").is_dir() else folders.model("flow")
    learner, _ = export.read_model(profile, arguments.initial or newest)
    _draw_sheet("sheet", learner.to(world.device).eval(), autoencoder, profile, folders, arguments, world)


def _finish(
    stage: str,
    content: dict[str, Any],
    learner: Learner,
    autoencoder: Any,
    profile: ModelProfile,
    folders: Folders,
    arguments: argparse.Namespace,
    world: World,
) -> None:
    if world.is_first:
        unseen, latents = _with_latents(folders, "validation", profile, autoencoder, arguments, world.alone)
        batches = Batches(unseen, latents, profile, world.alone, seed=0)
        content = content | {"validation": measured_on(world.alone, learner, batches)}
        world.say(f"{stage}: {json.dumps(content['validation'])}")
        stages = Report(path=folders.work / "report.json").add(stage, content)
        provenance = {
            "script": "python -m embedded.train.run",
            "commit": arguments.commit or _commit(),
            "data_seed": arguments.data_seed,
            "seed": arguments.seed,
            "device": torch.cuda.get_device_name() if world.is_cuda else "CPU",
            "torch": torch.__version__,
            "stages": stages,
        }
        model = folders.model(stage)
        export.write_model(learner, autoencoder, profile, model, provenance=provenance)
        for old in folders.out.glob("model.tar.*"):
            old.unlink()
        export.cut(model, folders.out)
        _draw_sheet(stage, learner, autoencoder, profile, folders, arguments, world.alone)
    world.barrier()


def _draw_sheet(
    name: str,
    learner: Learner,
    autoencoder: Any,
    profile: ModelProfile,
    folders: Folders,
    arguments: argparse.Namespace,
    world: World,
) -> None:
    unseen = load_corpus(folders.data, "validation", profile, world.device, seed=arguments.data_seed)
    drawn = sheet(world, learner, autoencoder, unseen, profile.autoencoder)
    _save_picture(drawn, folders.out / f"{name}.jpg")


def _autoencoder(folders: Folders, world: World) -> tuple[ModelProfile, Any]:
    measured = json.loads((folders.autoencoder / "measured.json").read_text())
    profile = export.with_factors(load_profile("embedded"), measured["scale_factor"], measured["shift_factor"])
    network = _read_autoencoder(profile, folders.autoencoder)
    return profile, network.to(world.device, memory_format=torch.channels_last).requires_grad_(False)


def _read_autoencoder(profile: ModelProfile, folder: Path) -> Any:
    network = build_autoencoder(profile.autoencoder)
    export.read_network(export.autoencoder_file(network, profile), folder)
    return network


def _with_latents(
    folders: Folders,
    split: Split,
    profile: ModelProfile,
    autoencoder: Any,
    arguments: argparse.Namespace,
    world: World,
) -> tuple[Corpus, Tensor]:
    began_s = time.monotonic()
    corpus = load_corpus(folders.data, split, profile, world.device, seed=arguments.data_seed)
    loaded_s = time.monotonic()
    kept = folders.autoencoder / f"latents-{split}.pt"
    params = profile.autoencoder
    if kept.is_file():
        latents = torch.load(kept, map_location=world.device, weights_only=True)
    if not kept.is_file() or len(latents) != len(corpus):
        latents = encoded(autoencoder, corpus.images, world)
        latents = ((latents.float() - params.shift_factor) * params.scale_factor).bfloat16()
        world.barrier()
        if world.is_first:
            torch.save(latents, kept)
    world.say(
        f"{split}: {len(corpus)} pictures of {corpus.num_identities} people read in {loaded_s - began_s:.0f} s, "
        f"encoded in {time.monotonic() - loaded_s:.0f} s"
    )
    return corpus, latents


def _wait_for_shards(data: Path, count: int, world: World) -> None:
    """Until so many shards are whole, or drawing is over. Raises TimeoutError where nothing comes."""
    began_s = time.monotonic()
    while len(whole_shards(data)) < count and not (data / "DONE").is_file():
        if time.monotonic() - began_s > DRAWING_PATIENCE_S:
            raise TimeoutError(
                f"{len(whole_shards(data))} of {count} shards after {DRAWING_PATIENCE_S:.0f} s; is drawing on?"
            )
        time.sleep(1.0)
    world.barrier()


def _resumed_at(checkpoint: Path) -> int:
    """A number that differs after every interruption, so that a resumed run does not see the same examples again."""
    return int(checkpoint.stat().st_mtime) if checkpoint.is_file() else 0


def _given(arguments: argparse.Namespace, **names: str) -> dict[str, Any]:
    """Settings by field name, for those that were given on the command line."""
    values = {field: getattr(arguments, option) for option, field in names.items()}
    return {field: value for field, value in values.items() if value is not None}


def _channel_stds(latents: Tensor) -> list[float]:
    return [round(float(x), 3) for x in latents.float().std(dim=(0, 2, 3))]


def _save_picture(pixels: np.ndarray[Any, np.dtype[np.uint8]], path: Path) -> None:
    Image.fromarray(pixels).save(path, quality=90)


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    return found.stdout.strip() or "unknown"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0, help="for the stage's loop; set-up comes on top")
    parser.add_argument("--pause-seconds", type=float, help="flow: stop after so long; the same command goes on later")
    parser.add_argument("--max-steps", type=int, help="end by steps instead of seconds")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", help="for provenance.json, where there is no git")
    parser.add_argument(
        "--initial", type=Path, help="model folder to begin with (autoencoder, flow, distill) or to draw with"
    )
    drawing = parser.add_argument_group("data")
    drawing.add_argument("--body", type=Path, default=Plan.body)
    drawing.add_argument("--data-seed", type=int, default=Plan.seed)
    drawing.add_argument("--identities", type=int, default=Plan.num_identities)
    drawing.add_argument("--views", type=int, default=Plan.num_views)
    drawing.add_argument("--identities-per-shard", type=int, default=Plan.identities_per_shard)
    drawing.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    drawing.add_argument("--gl-device", default="0", metavar="N|all", help="which GPU draws; not one that trains")
    learning = parser.add_argument_group("learning; defaults are in each stage's settings")
    learning.add_argument("--distill-seconds", type=float, default=0.0, help="flow: distil right afterwards, so long")
    learning.add_argument("--wait-shards", type=int, default=1, help="autoencoder: begin when so many are drawn")
    learning.add_argument("--ae-batch", type=int)
    learning.add_argument("--kl-weight", type=float)
    learning.add_argument("--batch", type=int)
    learning.add_argument("--looking-batch", type=int)
    learning.add_argument("--looking-share", type=float)
    learning.add_argument("--likeness-weight", type=float)
    learning.add_argument("--reader-seconds", type=float)
    learning.add_argument("--reader-batch", type=int)
    learning.add_argument("--learning-rate", type=float)
    learning.add_argument("--text-gain", type=float)
    learning.add_argument("--image-gain", type=float)
    return parser.parse_args()


def main() -> None:
    """Run one stage."""
    arguments = _arguments()
    folders = Folders(work=arguments.work, out=arguments.out)
    folders.work.mkdir(parents=True, exist_ok=True)
    folders.out.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "data":
        stage_data(folders, arguments)
        return
    stages = {
        "autoencoder": stage_autoencoder,
        "attributes": stage_attributes,
        "flow": stage_flow,
        "distill": stage_distill,
        "draw": stage_draw,
    }
    world = World.open(arguments.device)
    stages[arguments.stage](folders, arguments, world)
    if world.size > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
