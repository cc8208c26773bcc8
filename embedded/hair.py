"""Hair as strands: where they root, how each style grows them over the head.

A strand is NUM_POINTS points; the renderer draws it as a ribbon. Everything is vectorised over strands and depends on
the generator passed in alone. Points and vectors are (3, ...) in float32, x, y and z each in one piece: numpy is
several times faster so than on (..., 3), and this is most of what a picture costs the processor.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embedded.body import SKIN, Body, Floats, Ints
from embedded.people import Person
from embedded.shell import CENTER_Y_DM, Place, Shell, axis_z

NUM_POINTS = 14
NUM_ROOTS = 9000  # candidates over the whole head; a style takes some
NUM_KNOTS = 19
# Height of the hairline over the mean head, every 10° of azimuth from the front to the nape (dm), read off the mesh.
HAIRLINE = (
    8.06, 8.06, 8.05, 8.02, 7.94, 7.78, 7.52, 7.14, 7.10, 7.40, 7.42, 7.18, 6.88, 6.72, 6.65, 6.60, 6.57, 6.56, 6.55,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Strands:
    """`points` (4, NUM_POINTS, n): x, y, z in dm before the head turns, and openness in [0, 1] (0 deep in the hair).
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
        self.rest: Floats = np.einsum("rck,rc->rk", rest[self.corners], self.weights)
        self.azimuth_deg: Floats = np.degrees(np.arctan2(np.abs(self.rest[:, 0]), self.rest[:, 2] - 0.45))
        self._on_ear: NDArray[np.bool_] = (np.abs(self.rest[:, 0]) > 0.735) & (self.rest[:, 1] < 7.42)

    def on(self, per_vertex: Floats, chosen: NDArray[np.intp]) -> Floats:
        """A vertex quantity (V, 3) at some of the roots, (3, n)."""
        corners, weights = per_vertex[self.corners[chosen]], self.weights[chosen]
        at_roots: Floats = np.ascontiguousarray(np.einsum("rck,rc->rk", corners, weights).T)
        return at_roots

    def scalp(self, line: Floats, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Which roots lie above a hairline, its edge frayed; not on the ears."""
        height = np.interp(self.azimuth_deg, np.arange(NUM_KNOTS) * 10.0, line)
        above: NDArray[np.bool_] = self.rest[:, 1] > height + rng.uniform(-0.02, 0.07, len(height))
        return above & ~self._on_ear

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


def _floats(drawn: ArrayLike) -> Floats:
    """Random numbers (n, ...) as float32 (..., n)."""
    return np.ascontiguousarray(np.transpose(drawn), np.float32)


def _length(vectors: Floats) -> Floats:
    x, y, z = vectors
    length: Floats = np.sqrt(x * x + y * y + z * z)
    return length


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(_length(vectors), 1e-6)
    return unit


def _cross(a: Floats, b: Floats) -> Floats:
    return np.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def _smooth(low: float, high: float, value: Floats) -> Floats:
    t: Floats = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _field(points: Floats, phase: list[float], scale: float) -> Floats:
    """A smooth vector field: neighbours bend alike, so strands gather in locks."""
    x, y, z = points * scale
    return np.stack(
        [
            np.sin(y * 1.7 + phase[0] + 1.3 * np.sin(z + phase[1])),
            np.sin(z * 1.5 + phase[2] + 1.2 * np.sin(x + phase[3])),
            np.sin(x * 1.6 + phase[4] + 1.4 * np.sin(y + phase[5])),
        ]
    )


def _combed(style: Style, roots: Floats, side: Floats, part: float, rng: np.random.Generator) -> Floats:
    """Direction the comb gives at each root, (3, n)."""
    _, y, z = roots
    if style.comb == "side":
        lean = 1.0 if part <= 0 else -1.0
        forward = np.where(z > 0.6, 0.35, -0.5)
        down = np.where(y < 7.8, -1.2, 0.1)
        across = np.where(y < 7.8, 0.1 * side, lean)
        return np.stack([across, down, forward + rng.normal(0, 0.2, len(y))]).astype(np.float32)
    if style.comb == "out":
        return _floats(rng.normal(0, 1, (len(y), 3)))
    backward = -0.35 - 0.35 * _smooth(0.6, 1.3, z)
    low = _smooth(8.2, 7.8, y)  # beside the head hair hangs, on top it parts
    return np.stack([side * (1 - 0.9 * low), -0.2 - low, backward * (1 - 0.6 * low)])


def grow(style: Style, roots: Floats, normals: Floats, shell: Shell, part: float, rng: np.random.Generator) -> Floats:
    """Strands from roots (3, n): each step bends towards gravity, stays off the head and out of the face. (4, P, n)."""
    x, y, z = roots
    n = len(x)
    shell = shell.without_shoulders()
    phase: list[float] = rng.uniform(0, 2 * np.pi, 6).tolist()
    length = _floats(rng.uniform(*style.length, n)) * (1 + 0.10 * _field(roots, phase, 3.0)[0])
    layer = _floats(style.volume * rng.uniform(0.08, 1.0, n) ** 0.8)
    in_bangs = np.zeros(n, bool)
    if style.bangs:
        around = np.degrees(np.arctan2(np.abs(x), z - 0.42))
        in_bangs = (around < 48) & (z > 0.55)
        length = np.where(in_bangs, np.maximum(y - 7.60, 0.12) * 1.35 + 0.1, length)
    elif style.short_sides:
        length *= 0.42 + 0.58 * _smooth(7.55, 8.0, y)
        layer *= 0.4 + 0.6 * _smooth(7.55, 8.0, y)
    elif style.ends_at is not None:
        length = np.minimum(length, np.maximum(y - style.ends_at, 0.3) * 1.22 + 0.25)
    side = np.where(x > part * 0.7, np.float32(1), np.float32(-1))
    comb = _combed(style, roots, side, part, rng)
    comb[:, in_bangs] = np.stack([0.15 * x, np.full_like(x, -0.3), np.ones_like(x)])[:, in_bangs]
    frizz = _floats(rng.normal(0, 1, (n, 3)))
    direction = _unit(_unit(comb) + style.lift * normals + 0.12 * frizz + 0.25 * _field(roots, phase, 4.0))
    step = length / (NUM_POINTS - 1)
    points = np.empty((3, NUM_POINTS, n), np.float32)
    points[:, 0] = last = roots
    for k in range(1, NUM_POINTS):
        bend = 0.06 * _field(last, phase, 2.5)
        bend[1] -= style.gravity * (0.4 + k / NUM_POINTS)
        if style.comb == "fall":
            _lean_in(bend, last)
        direction = _unit(direction + bend)
        moved = last + direction * step
        ramp = min(1.0, k / 4)
        lift = layer * ramp + 0.015
        if style.opens_face:
            lift = np.maximum(lift, _over_ear(moved) * ramp)
        place = shell.locate(moved)
        moved = place.moved(np.maximum(place.surface + lift, place.distance))
        if style.opens_face:
            _open_face(moved, place, side, in_bangs, style.volume)
        direction = _unit(direction + _unit(moved - last))
        points[:, k] = last = moved
    return _finish(points, style, shell, length, rng, phase)


def _lean_in(bend: Floats, points: Floats) -> None:
    """Adds a pull towards the axis below the widest part of the head: hanging hair leans on cheeks and neck."""
    x, y, z = points
    back = z - axis_z(np.minimum(y, CENTER_Y_DM))
    away = np.sqrt(x * x + back * back)
    beyond = np.clip((away - 0.78) * 2.0, 0, 1)
    pull = 0.45 * _smooth(7.7, 7.1, y) * _smooth(5.6, 6.6, y) * beyond / np.maximum(away, 1e-6)
    bend[0] -= pull * x
    bend[2] -= pull * back


def _over_ear(points: Floats) -> Floats:
    """Height of the ears over the shell, which leaves them out, (n,)."""
    x, y, z = points
    around = np.degrees(np.arctan2(np.abs(x), z - 0.42))
    bump: Floats = 0.16 * np.exp(-(((around - 92) / 16) ** 2) - ((y - 7.12) / 0.30) ** 2)
    return bump


def _open_face(points: Floats, place: Place, side: Floats, exempt: NDArray[np.bool_], volume: float) -> None:
    """Turns points before the face aside around the head's axis. `place`: theirs, at any distance."""
    y = points[1]
    limit = math.radians(52 + 6 * (volume < 0.35)) * _smooth(8.12, 7.75, y) * (1 - 0.45 * _smooth(6.3, 5.4, y))
    turned = np.flatnonzero((place.azimuth * side < limit) & ~exempt)  # azimuth positive on the strand's own side
    back = place.foot_z[turned]
    distance = np.sqrt(points[0, turned] ** 2 + (points[2, turned] - back) ** 2)
    points[0, turned] = np.sin(limit[turned]) * distance * side[turned]
    points[2, turned] = np.cos(limit[turned]) * distance + back


def _finish(
    points: Floats, style: Style, shell: Shell, length: Floats, rng: np.random.Generator, phase: list[float]
) -> Floats:
    """Adds waves and curls, then openness from the distance to the head. (4, P, n)."""
    n = points.shape[-1]
    along = np.linspace(0, 1, NUM_POINTS, dtype=np.float32)[:, None]
    if style.wave or style.curl:
        locks = _field(points[:, 0], phase[::-1], 5.0)[0]
        swing = np.sin(along * length * 2.6 + (2.2 * locks + _floats(rng.normal(0, 0.25, n))))
        place = shell.locate(points)
        out = place.away / place.distance
        across = _unit(_cross(out, _along(points)))
        amount = np.minimum(along * 2.5, 1)
        points = points + (amount * style.wave * swing) * across
        if style.curl:
            turn = 2 * np.pi * style.turns * along + (_floats(rng.uniform(0, 2 * np.pi, n)) * 0.6 + 3 * locks)
            points += (amount * style.curl) * (np.cos(turn) * across + np.sin(turn) * out)
    place = shell.locate(points)
    open_ = np.clip((place.distance - place.surface) / max(style.volume, 0.03), 0, 1)
    open_ = np.where(points[1] < 6.2, np.maximum(open_, 0.5), open_)
    return np.concatenate([points, 0.15 + 0.85 * open_[None]])


def _along(points: Floats) -> Floats:
    """Where strands run at each of their points, (3, P, n)."""
    run = np.empty_like(points)
    run[:, 1:-1] = 0.5 * (points[:, 2:] - points[:, :-2])
    run[:, 0], run[:, -1] = points[:, 1] - points[:, 0], points[:, -1] - points[:, -2]
    return run


def _gathered(roots: Floats, shell: Shell, knot: Floats, volume: float, rng: np.random.Generator) -> Floats:
    """Strands combed over the head to one knot: arcs along the surface, (4, P, n)."""
    n = roots.shape[-1]
    center = np.array([0, CENTER_Y_DM, axis_z(CENTER_Y_DM)], np.float32)
    start, end = _unit(roots - center[:, None]), _unit(knot - center)
    angle: Floats = np.arccos(np.clip(end @ start, -1, 1))
    t = np.linspace(0, 1, NUM_POINTS, dtype=np.float32)[:, None]
    spread = _floats(rng.normal(0, 0.07, (n, 3)))
    arc: Floats = (np.sin((1 - t) * angle) / np.sin(angle + 1e-4)) * start[:, None]
    arc += (np.sin(t * angle) / np.sin(angle + 1e-4)) * end[:, None, None]
    arc = _unit(arc + spread[:, None] * (t * (1 - t)))
    layer = volume * _floats(rng.uniform(0.1, 1, n)) * np.minimum(t * 4, 1)
    points = shell.push_out(center[:, None, None] + arc * 0.2, layer + 0.012)
    points[:, 0] = roots
    return np.concatenate([points, (0.45 + 0.55 * layer / volume)[None]])


def _ball(center: Floats, radius: float, num: int, rng: np.random.Generator) -> Floats:
    """A bun: strands wound around a ball, (4, P, num)."""
    axis = _unit(_floats(rng.normal(0, 1, (num, 3)) + np.array([0, 1.6, 0.4])))
    first = _unit(_cross(axis, _floats(rng.normal(0, 1, (num, 3)))))
    second = _cross(axis, first)
    angle = _floats(rng.uniform(0, 2 * np.pi, num)) + np.linspace(0, 2.2, NUM_POINTS, dtype=np.float32)[:, None]
    height = _floats(rng.uniform(-0.75, 0.75, num))
    ring: Floats = np.cos(angle) * first[:, None] + np.sin(angle) * second[:, None]
    ring = _unit(ring + (height * axis)[:, None]) * (radius * _floats(rng.uniform(0.85, 1.06, num)))
    open_ = 0.55 + 0.45 * np.clip(ring[1] / radius, -1, 1)
    return np.concatenate([ring + center[:, None, None], open_[None]])


def _tail(knot: Floats, side: float, num: int, rng: np.random.Generator) -> Floats:
    """A ponytail: from the knot out, over and down beside the neck, (4, P, num)."""
    t = np.linspace(0, 1, NUM_POINTS, dtype=np.float32)[:, None]
    spread = _floats(rng.normal(0, 1, (num, 3)).clip(-1.8, 1.8) * np.array([1.0, 0.4, 1.0]))
    wide = 0.06 + 0.16 * np.sin(np.pi * np.clip(t * 0.9, 0, 1))
    path = [side * 1.25 * np.sqrt(t), 0.5 * t * (1 - 2.2 * t) * 2 - 2.1 * t**2, -0.25 * np.sin(np.pi * t)]
    points = knot[:, None, None] + np.stack(path) + spread[:, None] * wide
    open_ = np.broadcast_to(0.5 + 0.5 * _floats(rng.random(num)), (1, NUM_POINTS, num))
    return np.concatenate([points, open_])


def strands(
    person: Person, style_name: str, roots: Roots, vertices: Floats, normals: Floats, shell: Shell
) -> Strands | None:
    """The hair of a person in a style, or None if bald."""
    if style_name == "bald":
        return None
    rng = np.random.default_rng([person.seed, 0])
    chosen = np.flatnonzero(roots.scalp(hairline(person), rng))
    if style_name in GATHERED:
        places = roots.on(vertices, chosen[:2400])
        knot = shell.surface(np.pi, GATHERED[style_name], 0.05)
        points = _gathered(places, shell, knot, 0.14 if style_name == "slicked back" else 0.10, rng)
        if style_name == "bun":
            behind = knot - np.array([0, CENTER_Y_DM, 0.42], np.float32)
            ball = knot + _unit(behind) * 0.20 + np.array([0, 0.10, 0.05], np.float32)
            points = np.concatenate([points, _ball(ball, 0.34, 800, rng)], -1)
        elif style_name == "ponytail":
            tail = _tail(knot, 1.0 if person.part_side >= 0 else -1.0, 800, rng)
            points = np.concatenate([points, tail], -1)
        return Strands(points=points, width_dm=0.032, taper=0.8)
    style = STYLES[style_name]
    chosen = chosen[: style.num_strands]
    outward = _unit(roots.on(normals, chosen))
    points = grow(style, roots.on(vertices, chosen), outward, shell, person.part_side, rng)
    return Strands(points=points, width_dm=style.width, taper=style.taper)


def pressed(free: Strands, shell: Shell, rim_height: Callable[[Floats], Floats]) -> Strands:
    """Hair under headwear: what is above the rim (its height at points' z) lies at most half a centimetre high."""
    points = free.points.copy()
    flat = points[1] > rim_height(points[2])
    place = shell.locate(points[:3, flat])
    points[:3, flat] = place.moved(np.minimum(place.surface + 0.05, place.distance))
    return replace(free, points=points)


def beard_strands(person: Person, roots: Roots, vertices: Floats, normals: Floats) -> Strands | None:
    """The beard, or None for none and stubble (which is painted on the skin)."""
    if person.beard in ("none", "stubble"):
        return None
    rng = np.random.default_rng([person.seed, 11])
    chosen = np.flatnonzero(roots.beard(person.beard, rng))
    places, directions = roots.on(vertices, chosen), _unit(roots.on(normals, chosen))
    low, high = {"mustache": (0.10, 0.16), "short beard": (0.07, 0.14), "full beard": (0.25, 0.5)}[person.beard]
    n = len(chosen)
    length = _floats(rng.uniform(low, high, n))
    if person.beard == "full beard":  # shorter towards the ears
        length *= np.clip(1.15 - 0.9 * np.abs(places[0]) / 0.7, 0.3, 1)
    bend = directions * 0.75 + np.array([[0], [-1.0], [0.15]], np.float32) + 0.25 * _floats(rng.normal(0, 1, (n, 3)))
    bend[0] += np.sign(places[0]) * 0.5 * (places[1] > 6.7)
    t = np.linspace(0, 1, NUM_POINTS, dtype=np.float32)[:, None]
    points = places[:, None] + length * (t * _unit(bend)[:, None] + (1 - t) * t * 0.8 * directions[:, None])
    open_ = np.broadcast_to(0.55 + 0.45 * t, (1, NUM_POINTS, n))
    return Strands(points=np.concatenate([points, open_]), width_dm=0.020, taper=0.5)
