"""The head's outer surface as a height map around its axis: what hair and hats lie on.

A point is described by its azimuth (0 forward, positive to +x) and a height `s`: above the head's centre `s` is the
elevation angle in radians, below it the drop in decimetres (negative). So the map is a sphere over the skull and a
cylinder around the neck, joined at the centre.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int32]

NUM_AZIMUTHS = 64
_DEEPEST = 3.4
HEIGHTS = np.concatenate([np.linspace(-_DEEPEST, -0.1, 34), np.linspace(0.0, np.pi / 2, 22)]).astype(np.float32)
CENTER_Y_DM = 7.35
WIDEST_DM = 2.2  # arms and far shoulders don't push hair


def axis_z(y: Floats | float) -> Floats:
    """Where the axis runs at height y: from (5, 0.2) up the chest to (5.9, 0.12) in the neck and (7.3, 0.42), the
    skull's middle, as (y, z)."""
    neck, skull = np.clip((np.asarray(y, np.float32) - 5.0) / 0.9, 0, 1), np.clip((y - 5.9) / 1.4, 0, 1)
    z: Floats = (0.2 - 0.08 * neck + 0.30 * skull).astype(np.float32)
    return z


def directions() -> tuple[Floats, Floats]:
    """Origins and unit directions of the map's rays, (H, A, 3) each."""
    azimuth = (np.arange(NUM_AZIMUTHS) + 0.5) / NUM_AZIMUTHS * 2 * np.pi - np.pi
    s, around = np.meshgrid(HEIGHTS, azimuth.astype(np.float32), indexing="ij")
    elevation, y = np.maximum(s, 0), CENTER_Y_DM + np.minimum(s, 0)
    flat = np.cos(elevation)
    rays = np.stack([np.sin(around) * flat, np.sin(elevation), np.cos(around) * flat], -1).astype(np.float32)
    return np.stack([np.zeros_like(y), y, axis_z(y)], -1).astype(np.float32), rays


def trace(vertices: Floats, triangles: Ints) -> tuple[Ints, Floats]:
    """Outermost hits of the map's rays: triangle (H, A), -1 for none, and its corner weights (H, A, 3).

    Möller and Trumbore 1997, over all triangles: run once when the body file is built.
    """
    origins, rays = (array.reshape(-1, 3) for array in directions())
    a, b, c = (vertices[triangles[:, corner]] for corner in range(3))
    ab, ac = b - a, c - a
    hit = np.full(len(rays), -1, np.int32)
    corner_weights = np.zeros((len(rays), 3), np.float32)
    for i, (origin, ray) in enumerate(zip(origins, rays, strict=True)):
        p = np.cross(ray, ac)
        det = (ab * p).sum(1)
        facing = np.abs(det) > 1e-9
        inverse = 1 / np.where(facing, det, 1)
        u = ((origin - a) * p).sum(1) * inverse
        q = np.cross(origin - a, ab)
        v = (q @ ray) * inverse
        t = (ac * q).sum(1) * inverse
        inside = facing & (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0.05) & (t < WIDEST_DM)
        if inside.any():
            best = np.flatnonzero(inside)[np.argmax(t[inside])]
            hit[i] = best
            corner_weights[i] = (1 - u[best] - v[best], u[best], v[best])
    shape = (len(HEIGHTS), NUM_AZIMUTHS)
    return hit.reshape(shape), corner_weights.reshape(*shape, 3)


def _fill(radius: Floats, known: NDArray[np.bool_]) -> Floats:
    """Gaps (where an ear was left out, or arms reach too far) filled from their neighbours at the same height."""
    filled = radius.copy()
    column = np.arange(NUM_AZIMUTHS)
    for row in range(len(filled)):
        at = np.flatnonzero(known[row])
        if len(at) == 0:
            filled[row] = filled[row - 1] if row else WIDEST_DM
        elif len(at) < NUM_AZIMUTHS:
            filled[row] = np.interp(column, at, radius[row, at], period=NUM_AZIMUTHS)
    return filled


@dataclass(frozen=True, kw_only=True)
class Place:
    """Points as a map sees them: `foot_y` and `foot_z` on the axis, `away` (3, ...) from there, its length
    `distance`; asked for, their `azimuth`, and the head's `surface` in that direction, a distance too."""

    shell: "Shell"
    foot_y: Floats
    foot_z: Floats
    away: Floats
    distance: Floats

    @cached_property
    def azimuth(self) -> Floats:
        azimuth: Floats = np.arctan2(self.away[0], self.away[2])
        return azimuth

    @cached_property
    def surface(self) -> Floats:
        # Above the centre the drop is 0, below it the elevation is: their sum is the height of either part.
        height = np.arcsin(np.minimum(self.away[1] / self.distance, 1)) + (self.foot_y - CENTER_Y_DM)
        return self.shell.sample(self.azimuth, height)

    def moved(self, distance: Floats) -> Floats:
        """The points at another distance, (3, ...)."""
        points: Floats = self.away * (distance / self.distance)
        points[1] += self.foot_y
        points[2] += self.foot_z
        return points


@dataclass(frozen=True, kw_only=True)
class Shell:
    """One head's map: `radius` (H, A) in decimetres. Points are (3, ...) float32: numpy is several times faster on
    whole rows of x, y and z."""

    radius: Floats

    @staticmethod
    def of(vertices: Floats, triangles: Ints, hit: Ints, corner_weights: Floats) -> "Shell":
        """The map of these vertices, with `trace`'s hits on the mean head carried over to them."""
        corners = vertices[triangles[np.maximum(hit, 0)]]
        points = (corners * corner_weights[..., None]).sum(-2)
        origins, _ = directions()
        radius = _fill(np.linalg.norm(points - origins, axis=-1).astype(np.float32), hit >= 0)
        for _ in range(2):  # smooth, around and along
            radius = 0.5 * radius + 0.25 * (np.roll(radius, 1, 1) + np.roll(radius, -1, 1))
            padded = np.pad(radius, ((1, 1), (0, 0)), mode="edge")
            radius = 0.5 * radius + 0.25 * (padded[2:] + padded[:-2])
        return Shell(radius=radius)

    def without_shoulders(self) -> "Shell":
        """The map with shoulders cut off beside the neck, so that hair falls before and behind them."""
        azimuth = np.abs((np.arange(NUM_AZIMUTHS) + 0.5) / NUM_AZIMUTHS * 2 * np.pi - np.pi)
        cap = np.interp(np.degrees(azimuth), [0, 40, 60, 110, 180], [9.0, 9.0, 0.80, 0.72, 0.72])
        low = (HEIGHTS < -1.3)[:, None]
        return Shell(radius=np.where(low, np.minimum(self.radius, cap), self.radius).astype(np.float32))

    def locate(self, points: Floats) -> Place:
        """Where points (3, ...) lie."""
        foot_y = np.minimum(points[1], CENTER_Y_DM)
        foot_z = axis_z(foot_y)
        away = np.stack([points[0], points[1] - foot_y, points[2] - foot_z])
        distance = np.sqrt(away[0] * away[0] + away[1] * away[1] + away[2] * away[2]) + 1e-6
        return Place(shell=self, foot_y=foot_y, foot_z=foot_z, away=away, distance=distance)

    @cached_property
    def _table(self) -> Floats:
        """The map with its last column before the first and its first after the last, flat."""
        table: Floats = np.hstack([self.radius[:, -1:], self.radius, self.radius[:, :1]]).astype(np.float32).ravel()
        return table

    def sample(self, azimuth: Floats | float, s: Floats | float) -> Floats:
        """The surface's distance from the axis at (azimuth in ±pi, s), bilinear."""
        s = np.asarray(s, np.float32)
        row = np.clip(s + _DEEPEST, 0, _DEEPEST) * 10 + np.clip(s, 0, np.pi / 2) * (21 / (np.pi / 2))  # as HEIGHTS lie
        column = np.asarray(azimuth, np.float32) * (NUM_AZIMUTHS / (2 * np.pi)) + (NUM_AZIMUTHS / 2 + 0.5)
        low_row = np.minimum(row.astype(np.intp), len(HEIGHTS) - 2)
        low_column = column.astype(np.intp)
        down, across = row - low_row, column - low_column
        width = NUM_AZIMUTHS + 2
        at = low_row * width + low_column
        take = self._table.take
        top, bottom = take(at), take(at + width)
        top += across * (take(at + 1) - top)
        bottom += across * (take(at + (width + 1)) - bottom)
        distance: Floats = (top + down * (bottom - top)).astype(np.float32)
        return distance

    def surface(self, azimuth: Floats | float, s: Floats | float, lift: Floats | float) -> Floats:
        """Points `lift` decimetres outside the surface at (azimuth, s), (..., 3)."""
        distance = self.sample(azimuth, s) + lift
        elevation, y = np.maximum(s, 0), CENTER_Y_DM + np.minimum(s, 0)
        flat = np.cos(elevation) * distance
        x, z = np.sin(azimuth) * flat, np.cos(azimuth) * flat + axis_z(y)
        return np.stack([x, y + np.sin(elevation) * distance, z], -1).astype(np.float32)

    def push_out(self, points: Floats, lift: Floats | float) -> Floats:
        """Points (3, ...), those nearer than `lift` to the surface (or inside) moved out to it."""
        place = self.locate(points)
        return place.moved(np.maximum(place.surface + lift, place.distance))
