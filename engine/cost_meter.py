"""A cost model that follows its device: corrected by every step that was measured, and honest about its error."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import deque
from collections.abc import Sequence

from engine.cost_model import (
    MAX_CORRECTION,
    NUM_COEFFICIENTS,
    CostModel,
    Features,
    LinearCost,
    decode_features,
    step_features,
)

NOISE = 0.1
"""Scatter of a step's seconds around what is typical for it, as a share (standard deviation)."""

SHARED_DRIFT, OWN_DRIFT = 0.05, 0.01
"""By how much from one observation to the next all coefficients may change together (a device that slows down, other
work on it), and each on its own. On a busy machine of two cores these predicted best among 0.01-0.05 and 0.001-0.02."""

SHARED_DOUBT, OWN_DOUBT = 0.1, 0.3
"""How far calibration may be off, in the same two ways: it tells the sum of terms better than it tells them apart."""

MAX_DOUBT = 0.5
"""Ceiling of a coefficient's standard deviation, so that what is not observed for long does not jump when it is."""

MAX_SURPRISE = 3.0
"""An observation further off than so many standard deviations counts as that far off: a stall must not spoil it all."""


class CostFollower:
    """Corrects a cost by what was measured: a Kalman filter over the logarithms of its coefficients.

    In logarithms nothing becomes negative, errors are relative, and the observation's derivative by a coefficient is
    that coefficient's share in the prediction. What took no part in it moves only as far as it drifts with the rest.
    """

    def __init__(self, num_features: int) -> None:
        self._size = num_features
        self._covariance = self._matrix(SHARED_DOUBT, OWN_DOUBT)

    def corrected(self, cost: LinearCost, features: Features, measured_s: float) -> LinearCost:
        """The cost after one observation."""
        terms = cost.terms(features)
        predicted_s = sum(terms)
        if predicted_s <= 0.0 or measured_s <= 0.0:
            return cost
        shares = [term / predicted_s for term in terms]
        reach = [sum(a * b for a, b in zip(row, shares, strict=True)) for row in self._covariance]
        variance = sum(a * b for a, b in zip(reach, shares, strict=True)) + NOISE**2
        limit = MAX_SURPRISE * math.sqrt(variance)
        error = min(limit, max(-limit, math.log(measured_s / predicted_s)))
        self._covariance = self._drifted(
            [
                [p - a * b / variance for p, b in zip(row, reach, strict=True)]
                for row, a in zip(self._covariance, reach, strict=True)
            ]
        )
        moved = [old * math.exp(gain * error / variance) for old, gain in zip(cost.corrections, reach, strict=True)]
        bounded = tuple(min(MAX_CORRECTION, max(1 / MAX_CORRECTION, value)) for value in moved)
        return dataclasses.replace(cost, corrections=bounded)

    def _drifted(self, covariance: list[list[float]]) -> list[list[float]]:
        drift = self._matrix(SHARED_DRIFT, OWN_DRIFT)
        grown = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(covariance, drift, strict=True)]
        shrink = min(1.0, MAX_DOUBT**2 / max(grown[i][i] for i in range(self._size)))
        return [[shrink * value for value in row] for row in grown]

    def _matrix(self, shared: float, own: float) -> list[list[float]]:
        return [[shared**2 + (own**2 if i == j else 0.0) for j in range(self._size)] for i in range(self._size)]


class CostMeter:
    """A cost model that follows its device, and knows how well it does. One thread at a time may observe."""

    def __init__(self, model: CostModel, *, num_remembered: int = 256) -> None:
        self._model = model
        self._followers = self._fresh_followers()
        self._errors: deque[float] = deque(maxlen=num_remembered)

    @property
    def model(self) -> CostModel:
        """As known now."""
        return self._model

    def calibrate(self, model: CostModel) -> None:
        """Start again from what was just timed."""
        self._model = model
        self._followers = self._fresh_followers()

    @property
    def median_error(self) -> float | None:
        """Median of |predicted ÷ measured − 1| over the last steps, each predicted before it was observed."""
        return statistics.median(self._errors) if self._errors else None

    def observe_step(self, row_tokens: Sequence[int], measured_s: float) -> None:
        """A step took so long."""
        if measured_s > 0.0:
            self._errors.append(abs(self.model.step_seconds(row_tokens) / measured_s - 1.0))
        self._correct("step", step_features(row_tokens), measured_s)

    def observe_text(self, num_prompts: int, measured_s: float) -> None:
        """Encoding prompts took so long."""
        self._correct("text", (float(num_prompts),), measured_s)

    def observe_vision(self, num_references: int, measured_s: float) -> None:
        """Encoding reference pictures took so long."""
        self._correct("vision", (float(num_references),), measured_s)

    def observe_decode(self, num_pixels: int, measured_s: float) -> None:
        """Decoding a picture took so long."""
        self._correct("decode", decode_features(num_pixels), measured_s)

    def _correct(self, part: str, features: Features, measured_s: float) -> None:
        cost: LinearCost = getattr(self._model, part)
        corrected = self._followers[part].corrected(cost, features, measured_s)
        self._model = dataclasses.replace(self._model, **{part: corrected})

    def _fresh_followers(self) -> dict[str, CostFollower]:
        return {part: CostFollower(num) for part, num in NUM_COEFFICIENTS.items()}
