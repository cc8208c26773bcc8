"""The data set: identities × views, drawn by all cores into shards; a stopped run goes on where it was.

    python -m embedded.dataset --out DIR --seed 1 --identities 50000 --views 2 --workers 16 --gl-device all

A shard is two files: `images-NNNNN.npy`, uint8 (n, 256, 256, 3), and `views-NNNNN.jsonl`, one JSON object a picture in
the same order (identity, view, split, captions, attributes, points_px). The second is written last: a shard that has
it is whole. `manifest.json` holds what the pictures depend on; a folder made from other settings is refused.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedded.captions import captions
from embedded.people import Person, Split, sample_person, split_of, traits
from embedded.scene import Scene, sample_scene

VERSION = 4  # of what shards hold: raise it when pictures, captions or files change
CAPTIONS_PER_VIEW = 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which pictures to make. Same plan, same pictures (on one driver), however many workers make them."""

    out: Path
    body: Path = Path("embedded/body.npz")
    seed: int = 1
    first_identity: int = 0
    num_identities: int = 50_000
    num_views: int = 2
    identities_per_shard: int = 64

    def __post_init__(self) -> None:
        if min(self.num_identities, self.num_views, self.identities_per_shard) < 1:
            raise ValueError("identities, views and identities per shard must be at least 1")

    @property
    def num_shards(self) -> int:
        return -(-self.num_identities // self.identities_per_shard)

    def identities(self, shard: int) -> range:
        first = shard * self.identities_per_shard
        last = min(first + self.identities_per_shard, self.num_identities)
        return range(self.first_identity + first, self.first_identity + last)

    def paths(self, shard: int) -> tuple[Path, Path]:
        return self.out / f"images-{shard:05d}.npy", self.out / f"views-{shard:05d}.jsonl"

    def shapes_path(self, shard: int) -> Path:
        return self.out / f"shapes-{shard:05d}.npy"

    def traits_path(self, shard: int) -> Path:
        return self.out / f"traits-{shard:05d}.npy"

    def manifest(self) -> dict[str, Any]:
        settings = {key: value for key, value in dataclasses.asdict(self).items() if key not in ("out", "body")}
        return settings | {"version": VERSION, "body_sha256": hashlib.sha256(self.body.read_bytes()).hexdigest()}


def attributes(person: Person, scene: Scene) -> dict[str, Any]:
    """What a picture shows, for tests of prompt obedience: names and angles, no shape weights."""
    private = ("seed", "view", "center_dm", "gaze_deg")
    shown = {name: value for name, value in vars(scene).items() if name not in private}
    names = ("sex", "age_years", "age_name", "skin_name", "skin_tone", "eye_color", "beard", "freckles")
    return shown | {name: getattr(person, name) for name in names}


def make_shard(plan: Plan, shard: int, renderer: Any) -> int:
    """Draws and writes one shard; returns its number of pictures."""
    pictures, lines, shapes, others = [], [], [], []
    for index in plan.identities(shard):
        person = sample_person(plan.seed, index, renderer.body.local_names)
        figure = renderer.figure(person)
        shapes.append(figure.vertices[renderer.body.face_points])
        others.append(traits(person))
        scenes = [sample_scene(plan.seed, person, view) for view in range(plan.num_views)]
        for scene, picture in zip(scenes, renderer.draw_views(figure, scenes), strict=True):
            pictures.append(picture.image)
            record = {
                "identity": index,
                "view": scene.view,
                "split": split_of(plan.seed, index),
                "captions": captions(person, scene, plan.seed, CAPTIONS_PER_VIEW),
                "attributes": attributes(person, scene),
                "points_px": picture.points_px.round(2).tolist(),
            }
            lines.append(json.dumps(record))
    np.save(plan.shapes_path(shard), np.stack(shapes).astype(np.float32))
    np.save(plan.traits_path(shard), np.stack(others))
    images, views = plan.paths(shard)
    partial = images.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, np.stack(pictures))
    partial.replace(images)
    partial = views.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n")
    partial.replace(views)
    return len(lines)


def gl_device(text: str) -> int | None:
    """An option's value: `all` is None, else EGL's number of one device. Raises ValueError."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise ValueError(f"{text!r} is neither a device's number nor all")
    return int(text)


_device = 0  # of this worker process


def _start_worker(devices: Any) -> None:
    global _device
    _device = devices.get()


@functools.cache
def _renderer(body: Path) -> Any:
    """This process's renderer: it owns an OpenGL context."""
    from embedded.render import Renderer

    return Renderer(body, device=_device)


def _work(plan: Plan, shard: int) -> int:
    # Made here and not as the process starts: what goes wrong reaches the caller as the error of a job.
    try:
        renderer = _renderer(plan.body)
    except Exception as error:
        raise RuntimeError(f"a drawing process could not start on device {_device}: {error}") from error
    return make_shard(plan, shard, renderer)


def _devices(chosen: int | None) -> list[int]:
    if chosen is not None:
        return [chosen]
    from embedded.gl import gpus

    return gpus()


def generate(plan: Plan, num_workers: int, device: int | None = 0) -> Iterator[tuple[int, int]]:
    """Makes the shards that are missing; yields (pictures done now, shards left) after each.

    `device`: EGL's number of the one that draws, or None for all GPUs in turn. A GPU that trains at the same time is
    best left alone. Closing the iterator finishes the shards that are under way, and no others.

    Raises ValueError if the folder holds pictures of another plan, RuntimeError if a process can't start or dies.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    manifest_path, manifest = plan.out / "manifest.json", plan.manifest()
    if manifest_path.exists() and json.loads(manifest_path.read_text()) != manifest:
        raise ValueError(f"{manifest_path} was made from other settings; choose another folder or the same settings")
    manifest_path.write_text(json.dumps(manifest, indent=1) + "\n")
    missing = [shard for shard in range(plan.num_shards) if not plan.paths(shard)[1].exists()]
    if not missing:
        return
    num_workers = min(num_workers, len(missing))
    spawn = multiprocessing.get_context("spawn")  # OpenGL contexts don't survive a fork
    queue, devices = spawn.SimpleQueue(), _devices(device)
    for worker in range(num_workers):
        queue.put(devices[worker % len(devices)])
    pool = ProcessPoolExecutor(num_workers, spawn, _start_worker, (queue,))
    waiting, left = iter(missing), len(missing)
    try:
        running = {pool.submit(_work, plan, shard) for shard in islice(waiting, num_workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(_work, plan, shard) for shard in islice(waiting, len(done))}
            for job in done:
                left -= 1
                yield job.result(), left
    except BrokenProcessPool as error:
        raise RuntimeError("a drawing process died: out of memory or a crash in OpenGL; try fewer workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, kw_only=True)
class Views:
    """A data set on disk: `records` in order and `picture(i)`; the pictures stay memory-mapped."""

    records: list[dict[str, Any]]
    _shards: list[NDArray[np.uint8]]
    _places: list[tuple[int, int]]

    @staticmethod
    def load(folder: Path, split: Split | None = None) -> "Views":
        """All whole shards of a folder, or the views of one split. Raises FileNotFoundError if there are none."""
        records, shards, places = [], [], []
        for views in sorted(folder.glob("views-*.jsonl")):
            images = views.with_name(views.name.replace("views", "images")).with_suffix(".npy")
            shards.append(np.load(images, mmap_mode="r"))
            for row, line in enumerate(views.read_text().splitlines()):
                record = json.loads(line)
                if split in (None, record["split"]):
                    records.append(record)
                    places.append((len(shards) - 1, row))
        if not shards:
            raise FileNotFoundError(f"no shards in {folder}; make them with: python -m embedded.dataset --out {folder}")
        return Views(records=records, _shards=shards, _places=places)

    def __len__(self) -> int:
        return len(self.records)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """(256, 256, 3) uint8, a copy."""
        shard, row = self._places[index]
        return np.array(self._shards[shard][row])

    def by_identity(self) -> dict[int, list[int]]:
        """Indices of each identity's views."""
        groups: dict[int, list[int]] = {}
        for index, record in enumerate(self.records):
            groups.setdefault(record["identity"], []).append(index)
        return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--body", type=Path, default=Plan.body)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--first-identity", type=int, default=Plan.first_identity)
    parser.add_argument("--identities", type=int, default=Plan.num_identities)
    parser.add_argument("--views", type=int, default=Plan.num_views)
    parser.add_argument("--identities-per-shard", type=int, default=Plan.identities_per_shard)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--gl-device", type=gl_device, default=0, metavar="N|all", help="EGL device; all: GPUs in turn")
    arguments = parser.parse_args()
    plan = Plan(
        out=arguments.out,
        body=arguments.body,
        seed=arguments.seed,
        first_identity=arguments.first_identity,
        num_identities=arguments.identities,
        num_views=arguments.views,
        identities_per_shard=arguments.identities_per_shard,
    )
    began_s, done = time.monotonic(), 0
    try:
        for count, left in generate(plan, arguments.workers, arguments.gl_device):
            done += count
            rate = done / (time.monotonic() - began_s)
            sys.stderr.write(f"{done} pictures, {rate:.0f} a second, {left} shards left\n")
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
