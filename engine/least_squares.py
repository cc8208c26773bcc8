"""Least squares in a handful of unknowns that can't be negative. Standard library only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def non_negative_least_squares(rows: Sequence[tuple[list[float], float]]) -> list[float]:
    """Argmin of Σ (x·θ − y)² over θ ≥ 0, by trying every set of non-zero coefficients: there are at most 2⁴."""
    if not rows:
        raise ValueError("a fit needs at least one sample")
    size = len(rows[0][0])
    scales = [max(abs(x[i]) for x, _ in rows) or 1.0 for i in range(size)]
    scaled = [([value / scale for value, scale in zip(x, scales, strict=True)], y) for x, y in rows]
    best, best_error = [0.0] * size, math.inf
    for count in range(1, size + 1):
        for active in itertools.combinations(range(size), count):
            solved = _least_squares([([x[i] for i in active], y) for x, y in scaled])
            if solved is None or min(solved) < 0.0:
                continue
            theta = [0.0] * size
            for i, value in zip(active, solved, strict=True):
                theta[i] = value
            error = sum((sum(a * b for a, b in zip(x, theta, strict=True)) - y) ** 2 for x, y in scaled)
            if error < best_error:
                best, best_error = theta, error
    return [value / scale for value, scale in zip(best, scales, strict=True)]


def _least_squares(rows: Sequence[tuple[list[float], float]]) -> list[float] | None:
    """Normal equations by Gaussian elimination; None where the columns depend on each other."""
    size = len(rows[0][0])
    matrix = [
        [sum(x[i] * x[j] for x, _ in rows) for j in range(size)] + [sum(x[i] * y for x, y in rows)] for i in range(size)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda row: abs(matrix[row][i]))
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        if abs(matrix[i][i]) < 1e-9:
            return None
        for row in range(size):
            if row != i:
                factor = matrix[row][i] / matrix[i][i]
                matrix[row] = [a - factor * b for a, b in zip(matrix[row], matrix[i], strict=True)]
    return [matrix[i][size] / matrix[i][i] for i in range(size)]
