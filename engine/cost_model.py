"""What work costs a device, in seconds: one model for scheduling, admission, autoscaling and the bill.

Counting requests is wrong in all four: a 512² preview of 4 steps and a 2048² picture of 50 steps with true guidance
differ 400-fold. Every cost here is a sum of terms that can't be negative:

* a **step**: fixed, per row, per token (matrix products), per row tokens² (attention);
* **text** per prompt, **vision** per reference picture;
* **decoding**: fixed, per pixel, per pixel² (the autoencoder's attention).

Calibrated by timing a few shapes on the device at hand, then corrected by what every step really took. Standard library
only; the models are immutable, so that a price is taken from one consistent state.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CORRECTION_RATE = 0.1
"""Share of a step's error that a correction takes away: noise averages out, and a drift is followed, in ten steps."""

MAX_SURPRISE = 2.0
"""An observation further off than this factor counts as this far off: a stall must not spoil the model."""

MAX_CORRECTION = 16.0
"""A coefficient stays within this factor of its calibration."""

Features = tuple[float, ...]


def step_features(row_tokens: Sequence[int]) -> Features:
    """One forward pass over rows of so many tokens, text and image together."""
    return (1.0, len(row_tokens), sum(row_tokens), sum(num * num for num in row_tokens))


def decode_features(num_pixels: int) -> Features:
    """One picture's latents to pixels."""
    return (1.0, num_pixels, num_pixels * num_pixels)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LinearCost:
    """Seconds as a weighted sum of features, weights not negative.

    Attributes:
        calibrated: seconds a unit of each feature, as timed.
        corrections: a factor for each of them, learned since; within ``MAX_CORRECTION`` of 1.
    """

    calibrated: Features
    corrections: Features

    def __post_init__(self) -> None:
        if len(self.calibrated) != len(self.corrections):
            raise ValueError(f"{len(self.calibrated)} coefficients but {len(self.corrections)} corrections")
        if not all(math.isfinite(value) and value >= 0.0 for value in self.calibrated):
            raise ValueError(f"coefficients must be finite and not negative, got {self.calibrated}")
        if not all(1 / MAX_CORRECTION <= value <= MAX_CORRECTION for value in self.corrections):
            raise ValueError(f"corrections must be between 1/{MAX_CORRECTION:g} and {MAX_CORRECTION:g}")

    @staticmethod
    def of(*calibrated: float) -> LinearCost:
        """A cost as calibrated, not yet corrected."""
        return LinearCost(calibrated=calibrated, corrections=(1.0,) * len(calibrated))

    @staticmethod
    def fitted(samples: Iterable[tuple[Features, float]]) -> LinearCost:
        """The non-negative coefficients of least relative squared error over (features, seconds > 0)."""
        rows = [([value / seconds for value in features], 1.0) for features, seconds in samples]
        return LinearCost.of(*_non_negative_least_squares(rows))

    def seconds(self, features: Features) -> float:
        """The prediction."""
        return sum(self._terms(features))

    def corrected(self, features: Features, measured_s: float) -> LinearCost:
        """This cost after one observation.

        Every coefficient is multiplied by a power of measured/predicted, the larger its share in the prediction the
        larger the power, so that the prediction itself moves by ``CORRECTION_RATE`` of its error (normalised
        exponentiated gradient, Kivinen and Warmuth 1997). It can't become negative, and what took no part stays.
        """
        terms = self._terms(features)
        predicted_s = sum(terms)
        if predicted_s <= 0.0 or measured_s <= 0.0:
            return self
        limit = math.log(MAX_SURPRISE)
        error = min(limit, max(-limit, math.log(measured_s / predicted_s)))
        shares = [term / predicted_s for term in terms]
        gain = CORRECTION_RATE * error / sum(share * share for share in shares)
        moved = (old * math.exp(gain * share) for old, share in zip(self.corrections, shares, strict=True))
        bounded = tuple(min(MAX_CORRECTION, max(1 / MAX_CORRECTION, value)) for value in moved)
        return dataclasses.replace(self, corrections=bounded)

    def _terms(self, features: Features) -> list[float]:
        return [a * b * x for a, b, x in zip(self.calibrated, self.corrections, features, strict=True)]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RequestWork:
    """One request as the cost model sees it.

    Attributes:
        num_rows: rows of every step: two with true guidance.
        num_tokens_per_row: text and image tokens of a row.
        num_steps: steps from noise to picture.
        num_pixels: of the picture as drawn.
        num_prompts: prompts to encode, those in the cache not counted.
        num_references: reference pictures to encode, those in the cache not counted.
    """

    num_rows: int
    num_tokens_per_row: int
    num_steps: int
    num_pixels: int
    num_prompts: int = 1
    num_references: int = 0

    @property
    def row_tokens(self) -> tuple[int, ...]:
        """Tokens of each of its rows."""
        return (self.num_tokens_per_row,) * self.num_rows


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CostModel:
    """Prices of one model on one device. See the module's docstring."""

    step: LinearCost
    text: LinearCost
    vision: LinearCost
    decode: LinearCost

    @staticmethod
    def simple(*, step_s: float = 0.0, token_s: float = 0.0) -> CostModel:
        """So much a step and so much a token, everything else free."""
        free = LinearCost.of(0.0)
        return CostModel(
            step=LinearCost.of(step_s, 0.0, token_s, 0.0), text=free, vision=free, decode=LinearCost.of(0.0, 0.0, 0.0)
        )

    def step_seconds(self, row_tokens: Sequence[int]) -> float:
        """One step of rows with so many tokens each, whoever they belong to."""
        return self.step.seconds(step_features(row_tokens))

    def text_seconds(self, num_prompts: int) -> float:
        """Encoding prompts, which are all padded to one length."""
        return self.text.seconds((float(num_prompts),))

    def vision_seconds(self, num_references: int) -> float:
        """Encoding reference pictures, which all have one size."""
        return self.vision.seconds((float(num_references),))

    def decode_seconds(self, num_pixels: int) -> float:
        """Turning latents into a picture."""
        return self.decode.seconds(decode_features(num_pixels))

    def request_seconds(self, work: RequestWork) -> float:
        """A whole request, alone on the device."""
        encode_s = self.text_seconds(work.num_prompts) + self.vision_seconds(work.num_references)
        return encode_s + self.remaining_seconds(work, num_steps_done=0)

    def remaining_seconds(self, work: RequestWork, *, num_steps_done: int) -> float:
        """What is left of a request that is encoded already, alone on the device."""
        num_left = work.num_steps - num_steps_done
        return num_left * self.step_seconds(work.row_tokens) + self.decode_seconds(work.num_pixels)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> CostModel:
        """The inverse of :meth:`to_dict`, also after a round through JSON. Raises ValueError for anything else."""
        try:
            parts = {
                name: LinearCost(**{key: tuple(map(float, numbers)) for key, numbers in part.items()})
                for name, part in values.items()
            }
            return CostModel(**parts)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a cost model: {error}") from error


class CostMeter:
    """A cost model that follows its device, and knows how well it does. One thread at a time may observe."""

    def __init__(self, model: CostModel, *, num_remembered: int = 256) -> None:
        self.model = model
        self._errors: deque[float] = deque(maxlen=num_remembered)

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
        cost: LinearCost = getattr(self.model, part)
        self.model = dataclasses.replace(self.model, **{part: cost.corrected(features, measured_s)})


def _non_negative_least_squares(rows: Sequence[tuple[list[float], float]]) -> list[float]:
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
