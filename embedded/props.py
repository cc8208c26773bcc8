"""Glasses and headwear as small meshes fitted to one head."""

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

    def __add__(self, other: "Mesh") -> "Mesh":
        return Mesh(
            vertices=np.concatenate([self.vertices, other.vertices]),
            normals=np.concatenate([self.normals, other.normals]),
            uv=np.concatenate([self.uv, other.uv]),
            triangles=np.concatenate([self.triangles, other.triangles + len(self.vertices)]),
        )


def _grid_mesh(points: Floats, closed: bool) -> Mesh:
    """A surface from a grid of points (H, W, 3); `closed` joins the last column to the first."""
    if closed:
        points = np.concatenate([points, points[:, :1]], 1)
    height, width, _ = points.shape
    down, across = np.gradient(points, axis=0), np.gradient(points, axis=1)
    if closed:
        across[:, 0] = across[:, -1] = points[:, 1] - points[:, -2]
    normals = np.cross(across, down)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
    index = np.arange(height * width).reshape(height, width)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    triangles = np.concatenate([np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)])
    v, u = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    return Mesh(
        vertices=points.reshape(-1, 3).astype(np.float32),
        normals=normals.reshape(-1, 3).astype(np.float32),
        uv=np.stack([u, v], -1).reshape(-1, 2).astype(np.float32),
        triangles=triangles.astype(np.int32),
    )


def _tube(path: Floats, radius: float, closed: bool) -> Mesh:
    """A round tube along a path (n, 3)."""
    along = (np.roll(path, -1, 0) - np.roll(path, 1, 0)) if closed else np.gradient(path, axis=0)
    along = along / np.linalg.norm(along, axis=1, keepdims=True)
    first = np.cross(along, np.array([0.05, 0.1, 1.0]))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(along, first)
    angle = np.linspace(0, 2 * np.pi, _BEND, endpoint=False)
    ring = np.cos(angle)[:, None, None] * first + np.sin(angle)[:, None, None] * second  # (bend, n, 3)
    mesh = _grid_mesh(path + radius * ring, closed)
    outward = np.concatenate([ring, ring[:, :1]], 1) if closed else ring
    return Mesh(
        vertices=mesh.vertices, normals=outward.reshape(-1, 3).astype(np.float32), uv=mesh.uv, triangles=mesh.triangles
    )


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
    frame: Mesh | None = None
    lenses: Mesh | None = None
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
        for piece in (_tube(ring, thick, True), _tube(temple, thick * 0.8, False)):
            frame = piece if frame is None else frame + piece
        lens = _grid_mesh(disc, True)
        lenses = lens if lenses is None else lenses + lens
    reach = gap / 2 * 1.04 - half_width + 0.01
    t = np.linspace(-1, 1, 10)
    bridge = np.stack([reach * t, middle[1] + 0.06 - 0.05 * t * t, np.full(10, front_z + 0.005)], -1)
    assert frame is not None and lenses is not None
    return Glasses(frame=frame + _tube(bridge, thick, False), lenses=lenses)


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
        rows = [
            shell.surface(azimuth, rim + (np.pi / 2 - rim) * step, high) for step, high in zip(steps, lift, strict=True)
        ]
        return np.stack(rows)

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
        return crown + _grid_mesh(rows.astype(np.float32), False)
    top = dome(steps, np.float32(0.13) + 0.30 * steps * np.exp(-2 * (steps - 0.6) ** 2))
    brim = [
        shell.surface(azimuth, rim - 0.02, out) - np.array([0, drop, 0], np.float32)
        for out, drop in ((0.75, -0.02), (0.45, 0.03), (0.13, 0.0))
    ]
    return _grid_mesh(np.concatenate([np.stack(brim), top]).astype(np.float32)[::-1], True)
