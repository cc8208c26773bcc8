"""What work costs a device, in seconds: one model for scheduling, admission, autoscaling and the bill.

Counting requests is wrong in all four: a 512² preview of 4 steps and a 2048² picture of 50 steps with true guidance
differ 400-fold. Every cost here is a sum of terms that can't be negative:

* a **step**: fixed, per row, per token (matrix products), per row tokens² (attention);
* **text** per prompt, **vision** per reference picture;
* **decoding**: fixed, per pixel, per pixel² (the autoencoder's attention).

Calibrated by timing a few shapes on the device at hand (:mod:`engine.calibration`), then corrected by what every step
really took (:mod:`engine.cost_meter`). Standard library only; the models are immutable, so that a price is taken from
one consistent state.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine.least_squares import non_negative_least_squares

MAX_CORRECTION = 16.0
"""A coefficient stays within this factor of its calibration."""

NUM_COEFFICIENTS = {"step": 4, "text": 1, "vision": 1, "decode": 3}

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
        return LinearCost.of(*non_negative_least_squares(rows))

    def seconds(self, features: Features) -> float:
        """The prediction."""
        return sum(self.terms(features))

    def terms(self, features: Features) -> list[float]:
        """What each feature contributes; the prediction is their sum."""
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
class Price:
    """Seconds of one request's stages, alone on the device: encoding, each of its steps, decoding."""

    encode_s: float
    step_s: float
    decode_s: float

    def seconds_from(self, num_steps_left: int) -> float:
        """What is left of it once it is encoded."""
        return num_steps_left * self.step_s + self.decode_s

    def seconds(self, num_steps: int) -> float:
        """All of it."""
        return self.encode_s + self.seconds_from(num_steps)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CostModel:
    """Prices of one model on one device. See the module's docstring."""

    step: LinearCost
    text: LinearCost
    vision: LinearCost
    decode: LinearCost

    def __post_init__(self) -> None:
        for name, expected in NUM_COEFFICIENTS.items():
            found = len(getattr(self, name).calibrated)
            if found != expected:
                raise ValueError(f"{name} has {found} coefficients, expected {expected}")

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

    def price(self, work: RequestWork) -> Price:
        """A request's stages, each by itself."""
        return Price(
            encode_s=self.text_seconds(work.num_prompts) + self.vision_seconds(work.num_references),
            step_s=self.step_seconds(work.row_tokens),
            decode_s=self.decode_seconds(work.num_pixels),
        )

    def request_seconds(self, work: RequestWork) -> float:
        """A whole request, alone on the device."""
        return self.price(work).seconds(work.num_steps)

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
