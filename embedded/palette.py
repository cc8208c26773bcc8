"""Colours with the names that captions give them, as sRGB in [0, 1]. A name and its colour live in one place, so
that a caption can't disagree with its picture."""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Rgb = tuple[float, float, float]


def rgb(code: str) -> Rgb:
    """`#rrggbb` as three values in [0, 1]."""
    return (int(code[1:3], 16) / 255, int(code[3:5], 16) / 255, int(code[5:7], 16) / 255)


@functools.lru_cache(1024)
def linear(color: Rgb) -> Floats:
    """sRGB to linear light (IEC 61966-2-1), (3,)."""
    value = np.asarray(color, np.float32)
    light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)
    light.flags.writeable = False  # shared by all callers
    return light


# Lightest to darkest, at tones 0, 1/5 … 1; after the colours of the Monk Skin Tone scale, read by eye.
SKIN_RAMP = tuple(rgb(code) for code in ("#e6c2ac", "#dcae8f", "#d4a07c", "#b07b54", "#825537", "#523525"))
SKIN_NAMES = ((0.16, "fair"), (0.40, "light"), (0.60, "tan"), (0.80, "brown"), (1.01, "dark"))

EYES = {
    "dark brown": rgb("#3a2314"),
    "brown": rgb("#6b4023"),
    "hazel": rgb("#8a6a33"),
    "green": rgb("#5f8a52"),
    "blue": rgb("#4f86c0"),
    "gray": rgb("#8a98a3"),
}

HAIR = {
    "black": rgb("#1a1614"),
    "brown": rgb("#573621"),
    "blonde": rgb("#d6ab63"),
    "red": rgb("#a8431a"),
    "gray": rgb("#8b8a89"),
    "white": rgb("#e6e3df"),
    "pink": rgb("#e0709c"),
    "blue": rgb("#2f66c4"),
}

CLOTHES = {
    "black": rgb("#1b1b1f"),
    "white": rgb("#ececec"),
    "gray": rgb("#85878c"),
    "red": rgb("#b71f26"),
    "blue": rgb("#2857b4"),
    "navy": rgb("#1d2a4d"),
    "green": rgb("#2c7d43"),
    "yellow": rgb("#e3bb2a"),
    "orange": rgb("#dd7421"),
    "pink": rgb("#e58cac"),
    "purple": rgb("#6b3c97"),
    "beige": rgb("#cbb594"),
    "brown": rgb("#6d4a30"),
}

BACKDROPS = {
    "white": rgb("#f3f3f3"),
    "gray": rgb("#8d9094"),
    "black": rgb("#121214"),
    "red": rgb("#b3262c"),
    "blue": rgb("#3468bd"),
    "green": rgb("#378c4e"),
    "yellow": rgb("#e9c63f"),
    "orange": rgb("#e2812f"),
    "pink": rgb("#eba0ba"),
    "purple": rgb("#7a4aa6"),
    "beige": rgb("#d8c6a8"),
    "teal": rgb("#2a8f92"),
}

GLASSES = {"black": rgb("#141416"), "brown": rgb("#5b3a20"), "gold": rgb("#b8913f"), "red": rgb("#a02028")}


def skin_color(tone: float) -> Rgb:
    """The ramp at `tone` in [0, 1], 0 the lightest."""
    at = tone * (len(SKIN_RAMP) - 1)
    low = min(int(at), len(SKIN_RAMP) - 2)
    mixed = [a + (at - low) * (b - a) for a, b in zip(SKIN_RAMP[low], SKIN_RAMP[low + 1], strict=True)]
    return (mixed[0], mixed[1], mixed[2])


def skin_name(tone: float) -> str:
    """The caption's word for a tone in [0, 1]."""
    return next(name for limit, name in SKIN_NAMES if tone < limit)
