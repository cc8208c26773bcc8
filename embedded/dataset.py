"""The data set: identities × views, drawn by all cores into shards; a stopped run goes on where it was.

    python -m embedded.dataset --out DIR --seed 1 --identities 12500 --views 8 --workers 16

A shard is two files: `images-NNNNN.npy`, uint8 (n, 256, 256, 3), and `views-NNNNN.jsonl`, one JSON object a picture in
the same order (identity, view, split, captions, attributes, points_px). The second is written last: a shard that has
it is whole. `manifest.json` holds what the pictures depend on; a folder made from other settings is refused.
"""

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedded.captions import captions
from embedded.people import Person, Split, sample_person, split_of
from embedded.scene import Scene, sample_scene

VERSION = 1  # of what is drawn: raise it when pictures or captions change
CAPTIONS_PER_VIEW = 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which pictures to make. Same plan, same pictures (on one driver), however many workers make them."""

    out: Path
    body: Path
    seed: int
    first_identity: int
    num_identities: int
    num_views: int
    identities_per_shard: int

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

    def manifest(self) -> dict[str, Any]:
        settings = {key: value for key, value in dataclasses.asdict(self).items() if key not in ("out", "body")}
        return settings | {"version": VERSION, "body_sha256": hashlib.sha256(self.body.read_bytes()).hexdigest()}


def attributes(person: Person, scene: Scene) -> dict[str, Any]:
    """What a picture shows, for tests of prompt obedience: names and angles, no shape weights."""
    shown = dataclasses.asdict(scene)
    for private in ("seed", "view", "center_dm", "gaze_deg"):
        shown.pop(private)
    names = ("sex", "age_years", "age_name", "skin_name", "skin_tone", "eye_color", "beard", "freckles")
    return shown | {name: getattr(person, name) for name in names}


def make_shard(plan: Plan, shard: int, renderer: Any) -> int:
    """Draws and writes one shard; returns its number of pictures."""
    pictures, lines = [], []
    for index in plan.identities(shard):
        person = sample_person(plan.seed, index, renderer.body.local_names)
        figure = renderer.figure(person)
        for view in range(plan.num_views):
            scene = sample_scene(plan.seed, person, view)
            picture = renderer.draw(figure, scene)
            pictures.append(picture.image)
            record = {
                "identity": index,
                "view": view,
                "split": split_of(plan.seed, index),
                "captions": captions(person, scene, plan.seed, CAPTIONS_PER_VIEW),
                "attributes": attributes(person, scene),
                "points_px": picture.points_px.round(2).tolist(),
            }
            lines.append(json.dumps(record))
    images, views = plan.paths(shard)
    partial = images.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, np.stack(pictures))
    partial.replace(images)
    partial = views.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n")
    partial.replace(views)
    return len(lines)


_renderer: Any = None  # one a worker process: it owns an OpenGL context


def _start_worker(body: Path) -> None:
    global _renderer
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from embedded.render import Renderer

    _renderer = Renderer(body)


def _work(job: tuple[Plan, int]) -> int:
    return make_shard(job[0], job[1], _renderer)


def generate(plan: Plan, num_workers: int) -> Iterator[tuple[int, int]]:
    """Makes the shards that are missing; yields (pictures done now, shards left) after each.

    Raises ValueError if the folder holds pictures of another plan.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    manifest_path, manifest = plan.out / "manifest.json", plan.manifest()
    if manifest_path.exists() and json.loads(manifest_path.read_text()) != manifest:
        raise ValueError(f"{manifest_path} was made from other settings; choose another folder or the same settings")
    manifest_path.write_text(json.dumps(manifest, indent=1) + "\n")
    missing = [shard for shard in range(plan.num_shards) if not plan.paths(shard)[1].exists()]
    if not missing:
        return
    spawn = multiprocessing.get_context("spawn")  # OpenGL contexts don't survive a fork
    with spawn.Pool(min(num_workers, len(missing)), _start_worker, (plan.body,)) as pool:
        left = len(missing)
        for count in pool.imap_unordered(_work, [(plan, shard) for shard in missing]):
            left -= 1
            yield count, left


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
    parser.add_argument("--body", type=Path, default=Path(".cache-data/body.npz"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first-identity", type=int, default=0)
    parser.add_argument("--identities", type=int, default=12500)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--identities-per-shard", type=int, default=32)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
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
    for count, left in generate(plan, arguments.workers):
        done += count
        rate = done / (time.monotonic() - began_s)
        sys.stderr.write(f"{done} pictures, {rate:.0f} a second, {left} shards left\n")


if __name__ == "__main__":
    main()
