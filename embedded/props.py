"""Glasses and headwear as small meshes fitted to one head."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from embedded.body import Floats, Ints
from embedded.shell import CENTER_Y_DM, Shell

_BEND = 10  # corners of a tube's cross-section


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Triangles (F, 3) over vertices with normals (N, 3) and texture coordinates (N, 2); lengths in dm."""

    vertices: Floats
    normals: Floats
    uv: Floats
    triangles: Ints

    @staticmethod
    def joined(meshes: list["Mesh"]) -> "Mesh":
        first = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)]).tolist()
        return Mesh(
            vertices=np.concatenate([mesh.vertices for mesh in meshes]),
            normals=np.concatenate([mesh.normals for mesh in meshes]),
            uv=np.concatenate([mesh.uv for mesh in meshes]),
            triangles=np.concatenate([mesh.triangles + at for mesh, at in zip(meshes, first, strict=False)]),
        )


@functools.cache
def _grid(height: int, width: int) -> tuple[Ints, Floats]:
    """Triangles and texture coordinates of a grid of points."""
    index = np.arange(height * width).reshape(height, width)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    triangles = np.concatenate([np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)])
    v, u = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    return triangles.astype(np.int32), np.stack([u, v], -1).reshape(-1, 2).astype(np.float32)


def _mesh(points: Floats, normals: Floats) -> Mesh:
    """A surface through a grid of points (H, W, 3)."""
    triangles, uv = _grid(points.shape[0], points.shape[1])
    vertices, normals = (values.reshape(-1, 3).astype(np.float32) for values in (points, normals))
    return Mesh(vertices=vertices, normals=normals, uv=uv, triangles=triangles)


def _grid_mesh(points: Floats, closed: bool) -> Mesh:
    """A surface through a grid of points (H, W, 3); `closed` joins the last column to the first."""
    if closed:
        points = np.concatenate([points, points[:, :1]], 1)
    down, across = np.gradient(points, axis=0), np.gradient(points, axis=1)
    if closed:
        across[:, 0] = across[:, -1] = points[:, 1] - points[:, -2]
    return _mesh(points, _unit(_cross(across, down)))


def _tube(path: Floats, radius: float, closed: bool) -> Mesh:
    """A round tube along a path (n, 3)."""
    if closed:
        path = np.concatenate([path, path[:1]])
    along = np.gradient(path, axis=0)
    if closed:
        along[0] = along[-1] = path[1] - path[-2]
    along = _unit(along)
    first = _unit(_cross(along, np.array([0.05, 0.1, 1.0])))
    second = _cross(along, first)
    angle = np.linspace(0, 2 * np.pi, _BEND, endpoint=False)
    ring = np.cos(angle)[:, None, None] * first + np.sin(angle)[:, None, None] * second  # (bend, n, 3)
    return _mesh(path + radius * ring, ring)


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(np.sqrt(np.vecdot(vectors, vectors))[..., None], 1e-9)
    return unit


def _cross(a: Floats, b: Floats) -> Floats:
    """np.cross at a fraction of its overhead."""
    (ax, ay, az), (bx, by, bz) = np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0)
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], -1)


@dataclass(frozen=True, kw_only=True)
class Glasses:
    frame: Mesh
    lenses: Mesh


def glasses(kind: str, left_eye: Floats, right_eye: Floats, front_z: float, shell: Shell) -> Glasses:
    """Glasses of a kind of `scene.Eyewear` before eyes at (3,) each; `front_z`: the plane that clears the face."""
    middle = (left_eye + right_eye) / 2
    gap = float(left_eye[0] - right_eye[0])
    power, half_width, half_height, thick = {
        "round glasses": (2.0, 0.235, 0.225, 0.012),
        "glasses": (4.5, 0.255, 0.175, 0.016),
        "sunglasses": (3.2, 0.275, 0.215, 0.018),
    }[kind]
    half_width = min(half_width, gap / 2 - 0.045)
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ring_x = half_width * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** (2 / power)
    ring_y = half_height * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** (2 / power)
    frame, lenses = [], []
    for side in (1.0, -1.0):
        center_x = side * gap / 2 * 1.04
        x = center_x + ring_x
        wrap = -0.10 * np.maximum(np.abs(x) - 0.15, 0) ** 1.2  # follows the face's curve
        ring = np.stack([x, middle[1] - 0.03 + ring_y, front_z + wrap], -1)
        hub = ring.mean(0) + np.array([0, 0, 0.015])
        disc = np.stack([hub + (ring - hub) * t for t in (0.02, 0.5, 0.98)])
        outer = ring[np.argmax(side * ring[:, 0])]
        hinge = np.array([outer[0], middle[1] + 0.06, outer[2] - 0.01])
        ear_radius = float(shell.sample(side * np.pi / 2, 0.0))
        ear = np.array([side * (ear_radius + 0.03), middle[1] + 0.06, 0.42])
        t = np.linspace(0, 1, 12)[:, None]
        temple = hinge + (ear - hinge) * np.concatenate([np.sqrt(t), t, t], 1)
        frame += [_tube(ring, thick, True), _tube(temple, thick * 0.8, False)]
        lenses.append(_grid_mesh(disc, True))
    reach = gap / 2 * 1.04 - half_width + 0.01
    t = np.linspace(-1, 1, 10)
    bridge = np.stack([reach * t, middle[1] + 0.06 - 0.05 * t * t, np.full(10, front_z + 0.005)], -1)
    return Glasses(frame=Mesh.joined([*frame, _tube(bridge, thick, False)]), lenses=Mesh.joined(lenses))


RIMS = {"beanie": 7.66, "cap": 7.68, "hat": 7.70}  # where headwear that presses hair begins, beside the head, dm


def rim_height(kind: str) -> Callable[[Floats], Floats]:
    """Height of a headwear's rim above which hair is pressed, as a function of points' z."""

    def height(z: Floats) -> Floats:
        rim: Floats = RIMS[kind] + 0.10 * np.clip((z - 0.42) / 0.9, -1, 1)
        return rim

    return height


def headwear(kind: str, shell: Shell, hair_volume: float) -> Mesh:
    """A mesh for a kind of `scene.Headwear` on this head. `hair_volume`: extra room for a headband's hair, dm."""
    azimuth = np.linspace(-np.pi, np.pi, 72, endpoint=False).astype(np.float32)
    line = rim_height(kind if kind != "headband" else "hat")
    flat = shell.surface(azimuth, np.full(72, 0.35, np.float32), 0.0)
    rim_y = line(flat[:, 2]) - CENTER_Y_DM
    radius = shell.sample(azimuth, np.full(72, 0.35, np.float32))
    rim = np.arcsin(np.clip(rim_y / radius, -0.2, 0.95)).astype(np.float32)

    def dome(steps: Floats, lift: Floats) -> Floats:
        """Rows from the rim (0) to the crown (1), (len(steps), 72, 3)."""
        return shell.surface(azimuth, rim + (np.pi / 2 - rim) * steps[:, None], lift[:, None])

    if kind == "headband":
        up = np.array([0.10, 0.10, 0.16, 0.22, 0.28, 0.28], np.float32)
        over = hair_volume + np.array([-0.05, 0.05, 0.065, 0.065, 0.05, -0.05], np.float32)
        return _grid_mesh(dome(up, over)[::-1], True)
    if kind == "beanie":
        steps = np.concatenate([[0.0, 0.0, 0.06, 0.13, 0.15, 0.155], np.linspace(0.17, 1, 10)]).astype(np.float32)
        lift = np.concatenate([[0.02, 0.15, 0.17, 0.16, 0.14, 0.10], np.linspace(0.12, 0.26, 10)]).astype(np.float32)
        return _grid_mesh(dome(steps, lift)[::-1], True)
    steps = np.linspace(0, 1, 12).astype(np.float32)
    if kind == "cap":
        crown = _grid_mesh(dome(steps, np.float32(0.11) + 0.10 * np.sin(steps * np.pi / 2))[::-1], True)
        along = np.linspace(-1.05, 1.05, 25).astype(np.float32)
        start = shell.surface(along, np.interp(along, azimuth, rim).astype(np.float32), 0.10)
        reach = (0.75 * np.maximum(np.cos(along / 1.05 * np.pi / 2), 0) ** 0.7)[:, None] * np.array([0.0, -0.34, 1.0])
        reach[:, 0] = 0.10 * np.sin(along)
        rows = np.stack([start + reach * t + [0, -0.05 * t * 1.0, 0] for t in (0.0, 0.35, 0.7, 1.0)])
        rows[..., 1] -= 0.10 * (np.abs(np.sin(along)) ** 2)[None] * np.array([0, 0.4, 0.8, 1.0])[:, None]
        return Mesh.joined([crown, _grid_mesh(rows.astype(np.float32), False)])
    top = dome(steps, np.float32(0.13) + 0.30 * steps * np.exp(-2 * (steps - 0.6) ** 2))
    brim = [
        shell.surface(azimuth, rim - 0.02, out) - np.array([0, drop, 0], np.float32)
        for out, drop in ((0.75, -0.02), (0.45, 0.03), (0.13, 0.0))
    ]
    return _grid_mesh(np.concatenate([np.stack(brim), top]).astype(np.float32)[::-1], True)
