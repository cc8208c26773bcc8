"""Which of the backdrops' names a picture's background has."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from embedded import palette
from engine.request import RgbImage


def nearest_backdrop(picture: RgbImage) -> str:
    """The named backdrop nearest to the picture's upper corners, by distance in Lab."""
    corners = np.concatenate([picture[4:60, 4:28].reshape(-1, 3), picture[4:60, -28:-4].reshape(-1, 3)])
    red, green, blue = np.median(corners, axis=0) / 255
    seen = lab((float(red), float(green), float(blue)))
    return min(palette.BACKDROPS, key=lambda name: float(np.linalg.norm(lab(palette.BACKDROPS[name]) - seen)))


def lab(srgb: palette.Rgb) -> npt.NDArray[np.float64]:
    """sRGB in [0, 1] to CIE L*a*b* (D65)."""
    linear = palette.linear(srgb).astype(np.float64)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = matrix @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    result: npt.NDArray[np.float64] = np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
    return result
