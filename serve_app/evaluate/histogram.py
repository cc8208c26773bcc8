"""Distributions as a small drawing inside a page (SVG), so that a report needs no plotting library."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from serve_app.report_page import text

WIDTH_PX, ROW_PX, LABEL_PX, AXIS_PX = 900, 54, 210, 24
BIN = 0.0125
"""Eight bars between two marks of the axis."""
TICK = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One distribution: its name, its values, and a colour of CSS."""

    label: str
    values: Sequence[float]
    colour: str


def histograms(rows: Sequence[Row], *, threshold: float | None = None) -> str:
    """Rows of bars over one axis, medians as lines; rows without values are left out. ``threshold`` is dashed."""
    shown = [row for row in rows if row.values]
    if not shown:
        return ""
    values = [value for row in shown for value in row.values]
    low, high = math.floor(min(values) / TICK) * TICK, (math.floor(max(values) / TICK) + 1) * TICK
    height_px = ROW_PX * len(shown)
    parts = [_axis(low, high, height_px)]
    if threshold is not None and low <= threshold <= high:
        parts.append(_line(_x(threshold, low, high), 0, height_px, 'stroke="#777" stroke-dasharray="4 3"'))
    parts += [_row(row, low, high, bottom_px=ROW_PX * (place + 1)) for place, row in enumerate(shown)]
    size = f'viewBox="0 0 {WIDTH_PX} {height_px + AXIS_PX}" width="100%"'
    return f'<svg {size} role="img" font-size="13" font-family="inherit">{"".join(parts)}</svg>'


def _row(row: Row, low: float, high: float, *, bottom_px: int) -> str:
    counts, edges = np.histogram(row.values, round((high - low) / BIN), (low, high))
    bar_px = _x(edges[1], low, high) - _x(edges[0], low, high)
    bars = "".join(
        f'<rect x="{_x(left, low, high):.1f}" y="{bottom_px - height_px:.1f}" width="{bar_px - 0.8:.1f}" '
        f'height="{height_px:.1f}"/>'
        for left, height_px in zip(edges, (ROW_PX - 12) * counts / counts.max(), strict=False)
        if height_px > 0.0
    )
    median = float(np.median(row.values))
    line = _line(_x(median, low, high), bottom_px - ROW_PX + 6, bottom_px, 'stroke="#1c1c1c"')
    words = f'<text x="0" y="{bottom_px - 20}">{text(row.label)}</text>'
    words += f'<text x="0" y="{bottom_px - 4}" fill="#555">{len(row.values)}, median {median:.3f}</text>'
    return f'<g fill="{row.colour}" fill-opacity="0.75">{bars}</g>{line}{words}'


def _axis(low: float, high: float, top_px: int) -> str:
    ticks = np.linspace(low, high, round((high - low) / TICK) + 1)
    marks = "".join(
        f'<text x="{_x(tick, low, high):.1f}" y="{top_px + 18}" fill="#555" '
        f'text-anchor="{"end" if tick == ticks[-1] else "middle"}">{tick:.1f}</text>'
        for tick in ticks
    )
    return f'<line x1="{LABEL_PX}" x2="{WIDTH_PX}" y1="{top_px}" y2="{top_px}" stroke="#999"/>{marks}'


def _line(x_px: float, top_px: int, bottom_px: int, style: str) -> str:
    return f'<line x1="{x_px:.1f}" x2="{x_px:.1f}" y1="{top_px}" y2="{bottom_px}" {style}/>'


def _x(value: float, low: float, high: float) -> float:
    return LABEL_PX + (WIDTH_PX - LABEL_PX) * (value - low) / (high - low)
