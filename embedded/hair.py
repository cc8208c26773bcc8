"""Hair as strands: where they root, how each style grows them over the head.

A strand is NUM_POINTS points; the renderer draws it as a ribbon. Everything is vectorised over strands and depends on
the generator passed in alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedded.body import SKIN, Body, Floats, Ints
from embedded.people import Person
from embedded.shell import CENTER_Y_DM, Shell, axis_z

NUM_POINTS = 14
NUM_ROOTS = 9000  # candidates over the whole head; a style takes some
NUM_KNOTS = 19
# Height of the hairline over the mean head, every 10° of azimuth from the front to the nape (dm), read off the mesh.
HAIRLINE = (
    8.06, 8.06, 8.05, 8.02, 7.94, 7.78, 7.52, 7.14, 7.10, 7.40, 7.42, 7.18, 6.88, 6.72, 6.65, 6.60, 6.57, 6.56, 6.55,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Strands:
    """`points` (n, NUM_POINTS, 4): x, y, z in dm before the head turns, and openness in [0, 1] (0 deep in the hair).
    `width_dm` and `taper` (tip's width over the root's) of the ribbons."""

    points: Floats
    width_dm: float
    taper: float


@dataclass(frozen=True, kw_only=True)
class Style:
    """How hair falls. Lengths in decimetres; `lift` how far strands start off the comb's direction towards the
    normal; `volume` the thickness of the hair over the head; `wave` and `curl` amplitudes of slow and fast bends."""

    length: tuple[float, float]
    ends_at: float | None  # a height where all strands end, or None
    lift: float
    gravity: float
    volume: float
    comb: str  # fall, side, out
    wave: float = 0.0
    curl: float = 0.0
    turns: float = 5.0
    bangs: bool = False
    opens_face: bool = True
    short_sides: bool = False
    num_strands: int = 2600
    width: float = 0.034
    taper: float = 0.35


STYLES: dict[str, Style] = {
    "buzz cut": Style(
        length=(0.05, 0.09), ends_at=None, lift=1.2, gravity=0.3, volume=0.05, comb="fall", opens_face=False,
        width=0.022, num_strands=4600, taper=0.6,
    ),
    "short": Style(
        length=(0.34, 0.52), ends_at=None, lift=0.75, gravity=0.30, volume=0.15, comb="side", wave=0.03,
        opens_face=False, num_strands=3800, width=0.030, short_sides=True,
    ),
    "bob": Style(
        length=(2.2, 2.6), ends_at=6.42, lift=0.35, gravity=0.7, volume=0.24, comb="fall", wave=0.03,
    ),
    "bangs": Style(
        length=(3.6, 4.2), ends_at=5.3, lift=0.35, gravity=0.8, volume=0.20, comb="fall", wave=0.03, bangs=True,
    ),
    "long straight": Style(
        length=(3.4, 4.2), ends_at=None, lift=0.3, gravity=0.8, volume=0.18, comb="fall", wave=0.03,
    ),
    "long wavy": Style(
        length=(3.2, 3.9), ends_at=None, lift=0.4, gravity=0.7, volume=0.32, comb="fall", wave=0.13,
    ),
    "curly": Style(
        length=(1.5, 2.2), ends_at=None, lift=0.7, gravity=0.5, volume=0.44, comb="fall", wave=0.08, curl=0.06,
        turns=2.4, num_strands=3000, width=0.036,
    ),
    "afro": Style(
        length=(0.65, 0.8), ends_at=None, lift=3.0, gravity=0.0, volume=0.7, comb="out", curl=0.05, turns=4.0,
        opens_face=False, num_strands=4600, width=0.038, taper=0.8,
    ),
}  # fmt: skip

GATHERED = {"bun": 1.05, "ponytail": 0.75, "slicked back": -0.35}  # where the hair meets: height on the back's shell


def hairline(person: Person) -> Floats:
    """Heights of this person's hairline on the mean head, (NUM_KNOTS,)."""
    degrees = np.arange(NUM_KNOTS) * 10.0
    line = np.asarray(HAIRLINE, np.float64)
    front = np.clip((75 - degrees) / 40, 0, 1)
    line += 0.075 * person.hairline_lift * front
    line += 0.24 * person.temple_recession * np.exp(-(((degrees - 36) / 14) ** 2))
    line -= 0.07 * person.widows_peak * np.exp(-((degrees / 9) ** 2))
    knots: Floats = line.astype(np.float32)
    return knots


class Roots:
    """Fixed places on the head's skin where strands may root: on the same spots of every head."""

    def __init__(self, body: Body) -> None:
        rest = body.template.vertices
        skin = (body.part[body.welded] == SKIN).all(1) & (rest[body.welded][..., 1].min(1) > 6.0)
        triangles = body.welded[skin]
        a, b, c = (rest[triangles[:, corner]] for corner in range(3))
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        outward = ((a - (0, 7.2, 0.4)) * np.cross(b - a, c - a)).sum(1) > 0
        area *= outward
        rng = np.random.default_rng(7)  # one fixed set for all people
        chosen = rng.choice(len(triangles), NUM_ROOTS * 2, p=area / area.sum())
        u, v = rng.random((2, NUM_ROOTS * 2))
        flip = u + v > 1
        u, v = np.where(flip, 1 - u, u), np.where(flip, 1 - v, v)
        self.corners: Ints = triangles[chosen]
        self.weights: Floats = np.stack([1 - u - v, u, v], -1).astype(np.float32)
        self.rest: Floats = self.on(rest)
        self.azimuth_deg: Floats = np.degrees(np.arctan2(np.abs(self.rest[:, 0]), self.rest[:, 2] - 0.45))

    def on(self, per_vertex: Floats) -> Floats:
        """A vertex quantity at the roots, (R, 3)."""
        at_roots: Floats = np.einsum("rck,rc->rk", per_vertex[self.corners], self.weights)
        return at_roots

    def scalp(self, line: Floats, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Which roots lie above a hairline, its edge frayed; not on the ears."""
        height = np.interp(self.azimuth_deg, np.arange(NUM_KNOTS) * 10.0, line)
        on_ear = (np.abs(self.rest[:, 0]) > 0.735) & (self.rest[:, 1] < 7.42)
        return (self.rest[:, 1] > height + rng.uniform(-0.02, 0.07, len(height))) & ~on_ear

    def beard(self, kind: str, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Which roots carry a beard of this kind."""
        x, y, z = np.abs(self.rest[:, 0]), self.rest[:, 1], self.rest[:, 2]
        fray = rng.uniform(-0.03, 0.03, len(x))
        mustache = (x < 0.27) & (np.abs(y - (6.81 - 0.22 * np.maximum(x - 0.1, 0)) + fray) < 0.042) & (z > 1.0)
        if kind == "mustache":
            return mustache
        cheek = np.interp(x, [0.25, 0.66], [6.70, 7.0])
        jaw = (y < cheek + fray) & (y > 6.12) & (z > 0.42) & (x < 0.72)
        lips = (x < 0.26) & (y > 6.51) & (y < 6.79)
        goatee_gap = (np.abs(x - 0.13) < 0.06) & (y > 6.42) & (y < 6.54)
        return mustache | (jaw & ~lips & ~goatee_gap)


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
    return unit


def _smooth(low: float, high: float, value: Floats) -> Floats:
    t: Floats = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _field(points: Floats, phase: Floats, scale: float) -> Floats:
    """A smooth vector field: neighbours bend alike, so strands gather in locks."""
    x = points * scale
    return np.stack(
        [
            np.sin(x[:, 1] * 1.7 + phase[0] + 1.3 * np.sin(x[:, 2] + phase[1])),
            np.sin(x[:, 2] * 1.5 + phase[2] + 1.2 * np.sin(x[:, 0] + phase[3])),
            np.sin(x[:, 0] * 1.6 + phase[4] + 1.4 * np.sin(x[:, 1] + phase[5])),
        ],
        -1,
    ).astype(np.float32)


def _combed(style: Style, roots: Floats, part: float, rng: np.random.Generator) -> Floats:
    """Direction the comb gives at each root, (n, 3)."""
    side = np.where(roots[:, 0] > part * 0.7, 1.0, -1.0)
    zeros = np.zeros(len(roots))
    if style.comb == "side":
        lean = 1.0 if part <= 0 else -1.0
        forward = np.where(roots[:, 2] > 0.6, 0.35, -0.5)
        down = np.where(roots[:, 1] < 7.8, -1.2, 0.1)
        across = np.where(roots[:, 1] < 7.8, 0.1 * side, lean)
        return np.stack([across, down, forward + rng.normal(0, 0.2, len(roots))], -1).astype(np.float32)
    if style.comb == "out":
        return rng.normal(0, 1, (len(roots), 3)).astype(np.float32)
    backward = -0.35 - 0.35 * _smooth(0.6, 1.3, roots[:, 2])
    low = _smooth(8.2, 7.8, roots[:, 1])  # beside the head hair hangs, on top it parts
    return np.stack([side * (1 - 0.9 * low), zeros - 0.2 - low, backward * (1 - 0.6 * low)], -1).astype(np.float32)


def grow(style: Style, roots: Floats, normals: Floats, shell: Shell, part: float, rng: np.random.Generator) -> Floats:
    """Strands from roots: each step bends towards gravity, stays off the head and out of the face. (n, P, 4)."""
    n = len(roots)
    shell = shell.without_shoulders()
    phase = rng.uniform(0, 2 * np.pi, 6)
    length = rng.uniform(*style.length, n).astype(np.float32) * (1 + 0.10 * _field(roots, phase, 3.0)[:, 0])
    layer = (style.volume * rng.uniform(0.08, 1.0, n) ** 0.8).astype(np.float32)
    in_bangs = np.zeros(n, bool)
    if style.bangs:
        around = np.degrees(np.arctan2(np.abs(roots[:, 0]), roots[:, 2] - 0.42))
        in_bangs = (around < 48) & (roots[:, 2] > 0.55)
        length = np.where(in_bangs, np.maximum(roots[:, 1] - 7.60, 0.12) * 1.35 + 0.1, length)
    elif style.short_sides:
        length *= 0.42 + 0.58 * _smooth(7.55, 8.0, roots[:, 1])
        layer *= 0.4 + 0.6 * _smooth(7.55, 8.0, roots[:, 1])
    elif style.ends_at is not None:
        length = np.minimum(length, np.maximum(roots[:, 1] - style.ends_at, 0.3) * 1.22 + 0.25)
    comb = _unit(_combed(style, roots, part, rng))
    comb[in_bangs] = _unit(
        np.stack([0.15 * roots[in_bangs, 0], np.full(in_bangs.sum(), -0.3), np.full(in_bangs.sum(), 1.0)], -1)
    )
    direction = _unit(comb + style.lift * normals + 0.12 * rng.normal(0, 1, (n, 3)) + 0.25 * _field(roots, phase, 4.0))
    side = np.where(roots[:, 0] > part * 0.7, 1.0, -1.0).astype(np.float32)
    step = (length / (NUM_POINTS - 1))[:, None]
    points = np.empty((n, NUM_POINTS, 3), np.float32)
    points[:, 0] = roots
    pull = np.array([0, -1, 0], np.float32) * style.gravity
    for k in range(1, NUM_POINTS):
        bend = pull * (0.4 + k / NUM_POINTS) + 0.06 * _field(points[:, k - 1], phase, 2.5)
        if style.comb == "fall":
            bend = bend + _inward(points[:, k - 1])
        direction = _unit(direction + bend)
        moved: Floats = points[:, k - 1] + direction * step
        ramp = min(1.0, k / 4)
        lift: Floats = layer * ramp + 0.015
        if style.opens_face:
            lift = np.maximum(lift, _over_ear(moved) * ramp)
        moved = shell.push_out(moved, lift)
        if style.opens_face:
            moved = _open_face(moved, side, in_bangs, style.volume)
        direction = _unit(0.5 * direction + 0.5 * _unit(moved - points[:, k - 1]))
        points[:, k] = moved
    return _finish(points, style, shell, length, rng, phase)


def _inward(points: Floats) -> Floats:
    """A pull towards the axis below the widest part of the head: hanging hair leans on cheeks and neck, (n, 3)."""
    z = axis_z(np.minimum(points[:, 1], CENTER_Y_DM))
    away = np.stack([points[:, 0], np.zeros(len(points)), points[:, 2] - z], -1)
    beyond = np.maximum(np.linalg.norm(away, axis=1, keepdims=True) - 0.78, 0)
    below = (_smooth(7.7, 7.1, points[:, 1]) * _smooth(5.6, 6.6, points[:, 1]))[:, None]
    pull: Floats = (-0.45 * below * np.minimum(beyond * 2.0, 1.0) * _unit(away)).astype(np.float32)
    return pull


def _over_ear(points: Floats) -> Floats:
    """Height of the ears over the shell, which leaves them out, (n,)."""
    around = np.degrees(np.arctan2(np.abs(points[:, 0]), points[:, 2] - 0.42))
    bump: Floats = 0.16 * np.exp(-(((around - 92) / 16) ** 2) - ((points[:, 1] - 7.12) / 0.30) ** 2)
    return bump


def _open_face(points: Floats, side: Floats, exempt: NDArray[np.bool_], volume: float) -> Floats:
    """Turns points before the face aside around the head's axis."""
    z = axis_z(np.minimum(points[:, 1], CENTER_Y_DM))
    azimuth = np.arctan2(points[:, 0] * side, points[:, 2] - z)  # positive on the strand's own side
    limit = np.radians(52 + 6 * (volume < 0.35)) * _smooth(8.12, 7.75, points[:, 1])
    limit *= 1 - 0.45 * _smooth(6.3, 5.4, points[:, 1])
    turned = np.where(exempt, azimuth, np.maximum(azimuth, limit))
    distance = np.hypot(points[:, 0], points[:, 2] - z)
    x, depth = np.sin(turned) * distance * side, np.cos(turned) * distance + z
    return np.where((turned != azimuth)[:, None], np.stack([x, points[:, 1], depth], -1), points).astype(np.float32)


def _finish(
    points: Floats, style: Style, shell: Shell, length: Floats, rng: np.random.Generator, phase: Floats
) -> Floats:
    """Adds waves and curls, then openness from the distance to the head."""
    n = len(points)
    along = np.linspace(0, 1, NUM_POINTS, dtype=np.float32)[None, :]
    if style.wave or style.curl:
        base = points.reshape(-1, 3)
        locks = _field(np.repeat(points[:, 0], NUM_POINTS, 0), phase[::-1], 5.0)[:, 0].reshape(n, -1)
        swing = np.sin(along * length[:, None] * 2.6 + 2.2 * locks + rng.normal(0, 0.25, (n, 1)))
        foot, distance, _ = shell.locate(base)
        out = ((base - foot) / distance[:, None]).reshape(points.shape)
        across = _unit(np.cross(out, np.gradient(points, axis=1)))
        amount = np.minimum(along * 2.5, 1)[..., None]
        points = points + amount * style.wave * swing[..., None] * across
        turn = 2 * np.pi * style.turns * along + rng.uniform(0, 2 * np.pi, (n, 1)) * 0.6 + 3 * locks
        helix = np.cos(turn)[..., None] * across + np.sin(turn)[..., None] * out
        points = points + amount * style.curl * helix
    _, distance, surface = shell.locate(points.reshape(-1, 3))
    open_ = np.clip((distance - surface) / max(style.volume, 0.03), 0, 1).reshape(n, NUM_POINTS)
    open_ = np.where(points[..., 1] < 6.2, np.maximum(open_, 0.5), open_)
    return np.concatenate([points, (0.15 + 0.85 * open_)[..., None]], -1).astype(np.float32)


def _gathered(roots: Floats, shell: Shell, knot: Floats, volume: float, rng: np.random.Generator) -> Floats:
    """Strands combed over the head to one knot: arcs along the surface, (n, P, 4)."""
    center = np.array([0, CENTER_Y_DM, axis_z(CENTER_Y_DM)], np.float32)
    start, end = _unit(roots - center), _unit((knot - center)[None])
    angle = np.arccos(np.clip((start * end).sum(1), -1, 1))[:, None]
    t = np.linspace(0, 1, NUM_POINTS, dtype=np.float32)[None, :]
    spread = rng.normal(0, 0.07, (len(roots), 1, 3))
    arc = (np.sin((1 - t) * angle) / np.sin(angle + 1e-4))[..., None] * start[:, None]
    arc = arc + (np.sin(t * angle) / np.sin(angle + 1e-4))[..., None] * end[:, None]
    arc = _unit(arc + spread * (t * (1 - t))[..., None])
    layer = volume * rng.uniform(0.1, 1, (len(roots), 1)) * np.minimum(t * 4, 1)
    points = shell.push_out(center + arc * 0.2, layer + 0.012)
    points[:, 0] = roots
    open_ = 0.45 + 0.55 * layer / volume
    return np.concatenate([points, np.broadcast_to(open_, t.shape[:0] + layer.shape)[..., None]], -1).astype(np.float32)


def _ball(center: Floats, radius: float, num: int, rng: np.random.Generator) -> Floats:
    """A bun: strands wound around a ball, (num, P, 4)."""
    axis = _unit(rng.normal(0, 1, (num, 3)) + np.array([0, 1.6, 0.4]))
    first = _unit(np.cross(axis, rng.normal(0, 1, (num, 3))))
    second = np.cross(axis, first)
    angle = rng.uniform(0, 2 * np.pi, (num, 1)) + np.linspace(0, 2.2, NUM_POINTS)[None, :]
    height = rng.uniform(-0.75, 0.75, (num, 1, 1))
    ring = np.cos(angle)[..., None] * first[:, None] + np.sin(angle)[..., None] * second[:, None]
    points = _unit(ring + height * axis[:, None]) * radius * rng.uniform(0.85, 1.06, (num, 1, 1)) + center
    open_ = 0.55 + 0.45 * np.clip((points[..., 1] - center[1]) / radius, -1, 1)
    return np.concatenate([points, open_[..., None]], -1).astype(np.float32)


def _tail(knot: Floats, side: float, num: int, rng: np.random.Generator) -> Floats:
    """A ponytail: from the knot out, over and down beside the neck, (num, P, 4)."""
    t = np.linspace(0, 1, NUM_POINTS, dtype=np.float32)[None, :, None]
    spread = rng.normal(0, 1, (num, 1, 3)).clip(-1.8, 1.8) * (0.06 + 0.16 * np.sin(np.pi * np.clip(t * 0.9, 0, 1)))
    path = knot + np.concatenate(
        [side * 1.25 * np.sqrt(t), 0.5 * t * (1 - 2.2 * t) * 2 - 2.1 * t**2, -0.25 * np.sin(np.pi * t)], -1
    )
    points = path + spread * [1.0, 0.4, 1.0]
    open_ = np.broadcast_to(0.5 + 0.5 * rng.random((num, 1, 1)), (num, NUM_POINTS, 1))
    return np.concatenate([points, open_], -1).astype(np.float32)


def strands(
    person: Person, style_name: str, seed: int, roots: Roots, vertices: Floats, normals: Floats, shell: Shell,
    hat_line: Callable[[Floats], Floats] | None,
) -> Strands | None:  # fmt: skip
    """The hair of a person in a style, or None if bald. `hat_line`: height of the headwear's rim at points (n, 3),
    below which hair is free and above which it lies flat."""
    if style_name == "bald":
        return None
    rng = np.random.default_rng([person.seed, seed])
    chosen = np.flatnonzero(roots.scalp(hairline(person), rng))
    places, directions = roots.on(vertices), _unit(roots.on(normals))
    if style_name in GATHERED:
        chosen = chosen[:2400]
        knot = shell.surface(np.pi, GATHERED[style_name], 0.05)
        points = _gathered(places[chosen], shell, knot, 0.14 if style_name == "slicked back" else 0.10, rng)
        if style_name == "bun":
            ball = knot + _unit(knot - np.array([0, CENTER_Y_DM, 0.42], np.float32)) * 0.20 + [0, 0.10, 0.05]
            extra = _ball(ball, 0.34, 800, rng)
        elif style_name == "slicked back":
            extra = points[:0]
        else:
            extra = _tail(knot, 1.0 if person.part_side >= 0 else -1.0, 800, rng)
        points, width, taper = np.concatenate([points, extra]), 0.032, 0.8
    else:
        style = STYLES[style_name]
        chosen = chosen[: style.num_strands]
        points = grow(style, places[chosen], directions[chosen], shell, person.part_side, rng)
        width, taper = style.width, style.taper
    if hat_line is not None:
        flat = points[..., 1] > hat_line(points[..., :3])
        pressed = _press(points[..., :3], shell, 0.05)
        points[..., :3] = np.where(flat[..., None], pressed, points[..., :3])
    return Strands(points=np.ascontiguousarray(points), width_dm=width, taper=taper)


def _press(points: Floats, shell: Shell, most: float) -> Floats:
    """Points farther than `most` from the head moved back to it."""
    foot, distance, surface = shell.locate(points)
    shrink = np.minimum((surface + most) / distance, 1.0)
    return foot + (points - foot) * shrink[..., None]


def beard_strands(person: Person, roots: Roots, vertices: Floats, normals: Floats) -> Strands | None:
    """The beard, or None for none and stubble (which is painted on the skin)."""
    if person.beard in ("none", "stubble"):
        return None
    rng = np.random.default_rng([person.seed, 11])
    chosen = np.flatnonzero(roots.beard(person.beard, rng))
    places, directions = roots.on(vertices)[chosen], _unit(roots.on(normals)[chosen])
    low, high = {"mustache": (0.10, 0.16), "short beard": (0.07, 0.14), "full beard": (0.25, 0.5)}[person.beard]
    n = len(chosen)
    length = rng.uniform(low, high, (n, 1)).astype(np.float32)
    if person.beard == "full beard":  # shorter towards the ears
        length *= np.clip(1.15 - 0.9 * np.abs(places[:, :1]) / 0.7, 0.3, 1)
    sideways = np.stack([np.sign(places[:, 0]) * 0.5 * (places[:, 1] > 6.7), np.zeros(n), np.zeros(n)], -1)
    bend = _unit(directions * 0.75 + [0, -1.0, 0.15] + sideways + 0.25 * rng.normal(0, 1, (n, 3)))
    t = np.linspace(0, 1, NUM_POINTS, dtype=np.float32)[None, :, None]
    points = places[:, None] + length[:, None] * (t * bend[:, None] + (1 - t) * t * 0.8 * directions[:, None])
    open_ = np.broadcast_to(0.55 + 0.45 * t, (n, NUM_POINTS, 1))
    return Strands(points=np.concatenate([points, open_], -1).astype(np.float32), width_dm=0.020, taper=0.5)
