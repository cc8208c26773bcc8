"""Training in miniature: thin networks, eight people of plain discs, and the driver over several processes.

    python -m tests.miniature_training STORE [arguments of embedded.train.run]

runs the driver on the thin profile, as one of ``WORLD_SIZE`` processes that meet through the file ``STORE``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from embedded.train import run
from embedded.train.world import World
from engine.profile import ModelProfile, load_profile

WORLD = World(rank=0, size=1, device=torch.device("cpu"))
SPLITS = ("train", "train", "train", "train", "train", "train", "validation", "test")
VIEWS = 3


def miniature() -> ModelProfile:
    """The embedded profile, thinner: the same vocabularies, picture size and files."""
    profile = load_profile("embedded")
    return dataclasses.replace(
        profile,
        transformer=dataclasses.replace(
            profile.transformer, hidden_size=64, num_heads=2, depth=1, depth_single_blocks=1, axes_dim=(8, 12, 12)
        ),
        clip_vision=dataclasses.replace(
            profile.clip_vision,
            patch_size=32,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            projection_dim=32,
        ),
        autoencoder=dataclasses.replace(profile.autoencoder, ch=8, ch_mult=(1, 1, 2, 2), norm_num_groups=4),
    )


def write_people(folder: Path) -> None:
    """Shards as the data stage writes them: a disc of the person's colour on the view's background."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:256, :256]
    pictures, records = [], []
    for identity, split in enumerate(SPLITS):
        skin = rng.integers(40, 255, 3)
        for view in range(VIEWS):
            background = rng.integers(0, 255, 3)
            cx, cy = 128 + rng.integers(-10, 10, 2)
            is_face = (((x - cx) / 50) ** 2 + ((y - cy) / 66) ** 2 < 1)[..., None]
            pictures.append(np.where(is_face, skin, background).astype(np.uint8))
            eyes = [[cx - 22, cy - 12], [cx + 22, cy - 12]]
            records.append(
                {
                    "identity": identity,
                    "view": view,
                    "split": split,
                    "captions": [f"a face, number {view}", "a portrait"],
                    "attributes": {},
                    "points_px": [*eyes, [cx, cy + 14], [cx - 20, cy + 40], [cx + 20, cy + 40]],
                }
            )
    np.save(folder / "images-00000.npy", np.stack(pictures))
    np.save(folder / "shapes-00000.npy", rng.normal(size=(len(SPLITS), 20, 3)).astype(np.float32))
    np.save(folder / "traits-00000.npy", rng.normal(size=(len(SPLITS), 4)).astype(np.float32))
    lines = "\n".join(json.dumps(record, default=int) for record in records)
    (folder / "views-00000.jsonl").write_text(lines + "\n")


def main() -> None:
    """See the module's docstring."""
    store, *arguments = sys.argv[1:]
    torch.set_num_threads(1)
    size = int(os.environ["WORLD_SIZE"])
    if size > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=int(os.environ["RANK"]), world_size=size
        )
    sys.argv = ["run", "--device", "cpu", *arguments]
    with mock.patch.object(run, "load_profile", lambda name: miniature()):
        run.main()


if __name__ == "__main__":
    main()
