"""Pictures, captions and identities as tensors on the device, so that a batch is a few index operations."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedded.people import Split
from embedded.train.captions import Tokens, tokenise
from engine.profile import ModelProfile

LOADER_THREADS = 8

# The service's detector's box from five points: fitted to its boxes of 296 drawn views. What is left is 14 px of
# standard deviation in the side and 6 px in the centre, less than references are moved at random.
BOX_SIDE_PER_EYE_MOUTH, BOX_SIDE_PX = 1.21, 88.4
BOX_X_PER_NOSE, BOX_Y = -1.11, -0.22


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """One split of a data set on a device. V views an identity, C captions a view, N = identities · V.

    Attributes:
        images: (N, 256, 256, 3) uint8.
        faces: (N, 3) float32: a face detector's square as centre x, centre y and side, in pixels.
        tokens: captions as token ids.
        shapes: (N / V, 3 · points) float32: where points of each person's face lie, in decimetres.
        traits: (N / V, K) float32: what else each person's face shows, as numbers (:func:`embedded.people.traits`).
        num_views: V; views of one identity are neighbours.
        records: what the pictures show (see :mod:`embedded.dataset`), in order.
    """

    images: Tensor
    faces: Tensor
    tokens: Tokens
    shapes: Tensor
    traits: Tensor
    num_views: int
    records: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_identities(self) -> int:
        """People."""
        return len(self) // self.num_views

    def another_view(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """For each row one of the same identity's other views."""
        if self.num_views < 2:
            return rows
        ahead = torch.randint(1, self.num_views, rows.shape, generator=generator, device=rows.device)
        identity, view = rows // self.num_views, rows % self.num_views
        return identity * self.num_views + (view + ahead) % self.num_views


def whole_shards(folder: Path) -> list[Path]:
    """The shards that are complete, by their image file, in order."""
    views = sorted(folder.glob("views-*.jsonl"))
    return [view.with_name(view.name.replace("views", "images")).with_suffix(".npy") for view in views]


def load_pictures(shards: list[Path], device: torch.device) -> tuple[Tensor, Tensor]:
    """All pictures of some shards, whatever their split, for training the autoencoder.

    Returns:
        (N, 256, 256, 3) uint8 pictures and (N, 3) face squares, as in :class:`Corpus`.
    """
    with ThreadPoolExecutor(LOADER_THREADS) as pool:
        images = torch.cat(list(pool.map(lambda path: torch.from_numpy(np.load(path)).to(device), shards)))
        records = [record for part in pool.map(_records, shards) for record in part]
    return images, _face_squares_of(records).to(device)


def load_corpus(
    folder: Path,
    split: Split,
    profile: ModelProfile,
    device: torch.device,
    *,
    seed: int,
    max_shards: int | None = None,
) -> Corpus:
    """Read one split of all whole shards, or of the first ``max_shards`` of them.

    Raises:
        FileNotFoundError: no whole shard there.
        ValueError: no picture of this split, or identities with different numbers of views.
    """
    shards = whole_shards(folder)[:max_shards]
    if not shards:
        raise FileNotFoundError(f"no shards in {folder}; draw them with --stage data")
    with ThreadPoolExecutor(LOADER_THREADS) as pool:
        parts = list(pool.map(lambda path: _load_shard(path, split, device), shards))
    records = [record for part in parts for record in part.records]
    if not records:
        raise ValueError(f"no {split} picture in {folder}: draw more identities")
    counts = np.unique([record["identity"] for record in records], return_counts=True)[1]
    if len(set(counts.tolist())) != 1:
        raise ValueError(f"identities in {folder} have {sorted(set(counts.tolist()))} views; they must have as many")
    return Corpus(
        images=torch.cat([part.images for part in parts]),
        faces=_face_squares_of(records).to(device),
        tokens=tokenise([record["captions"] for record in records], profile, seed=seed).to(device),
        shapes=torch.cat([part.shapes for part in parts]),
        traits=torch.cat([part.traits for part in parts]),
        num_views=int(counts[0]),
        records=records,
    )


def face_squares(points_px: Tensor) -> Tensor:
    """(N, 5, 2) eyes, nose, mouth corners → (N, 3): where a face detector's box lies, as centre and longer side."""
    eyes, mouth, nose = points_px[:, :2].mean(1), points_px[:, 3:].mean(1), points_px[:, 2]
    middle, reach = (eyes + mouth) / 2, (mouth - eyes).norm(dim=1)
    x = middle[:, 0] + BOX_X_PER_NOSE * (nose - middle)[:, 0]
    return torch.stack((x, middle[:, 1] + BOX_Y * reach, BOX_SIDE_PER_EYE_MOUTH * reach + BOX_SIDE_PX), dim=1)


def face_shares(faces: Tensor, side: int, size_px: int) -> Tensor:
    """(N, 3) face squares in pictures of ``size_px`` → (N, side²): how much of each token's square lies in one."""
    step = size_px / side
    edges = torch.arange(side, device=faces.device) * step

    def covered(centre: Tensor) -> Tensor:  # (N, side)
        low, high = (centre - faces[:, 2] / 2)[:, None], (centre + faces[:, 2] / 2)[:, None]
        return (torch.minimum(high, edges + step) - torch.maximum(low, edges)).clamp(min=0) / step

    return (covered(faces[:, 1])[:, :, None] * covered(faces[:, 0])[:, None, :]).flatten(1)


def _face_squares_of(records: list[dict[str, Any]]) -> Tensor:
    return face_squares(torch.tensor([record["points_px"] for record in records], dtype=torch.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """What one shard holds of a split."""

    images: Tensor
    shapes: Tensor
    traits: Tensor
    records: list[dict[str, Any]]


def _load_shard(path: Path, split: Split, device: torch.device) -> _Part:
    records = _records(path)
    rows = [row for row, record in enumerate(records) if record["split"] == split]
    images = np.load(path, mmap_mode="r")
    shapes, traits = (np.load(path.with_name(path.name.replace("images", name))) for name in ("shapes", "traits"))
    people = list(dict.fromkeys(record["identity"] for record in records))  # in the shard's order
    chosen = [people.index(identity) for identity in dict.fromkeys(records[row]["identity"] for row in rows)]
    return _Part(
        images=torch.from_numpy(np.ascontiguousarray(images[rows])).to(device),
        shapes=torch.from_numpy(shapes[chosen]).flatten(1).to(device),
        traits=torch.from_numpy(traits[chosen]).to(device),
        records=[records[row] for row in rows],
    )


def _records(path: Path) -> list[dict[str, Any]]:
    """What the pictures of a shard show, by its image file."""
    lines = path.with_name(path.name.replace("images", "views")).with_suffix(".jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
