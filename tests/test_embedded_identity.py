"""The judge of the embedded model's pictures knows a backdrop when it sees one, and asks for what it can judge."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import embedded_identity
from embedded import palette


@pytest.mark.parametrize("name", palette.BACKDROPS)
def test_a_backdrop_is_known_by_its_colour(name: str) -> None:
    level = np.array([round(255 * value) for value in palette.BACKDROPS[name]], dtype=np.uint8)
    picture = np.tile(level, (256, 256, 1))
    picture[64:, 64:192] = 127  # whoever stands before it
    assert embedded_identity.nearest_backdrop(picture) == name


def test_lightness_is_that_of_the_standard() -> None:
    assert embedded_identity.lab((1.0, 1.0, 1.0)) == pytest.approx([100.0, 0.0, 0.0], abs=0.02)
    assert embedded_identity.lab((0.0, 0.0, 0.0)) == pytest.approx([0.0, 0.0, 0.0], abs=0.02)


def test_every_picture_has_a_name_of_its_own_and_asks_for_known_colours() -> None:
    asked = embedded_identity.plan([1, 2, 77])
    assert len({item.name for item in asked}) == len(asked) == 3 * (4 * 4 + 2 * 2)
    assert {item.asked["background"] for item in asked} <= set(palette.BACKDROPS)
    assert {item.asked["hair"] for item in asked} <= set(palette.HAIR)
