"""The judge of the embedded model's pictures knows a backdrop when it sees one, and asks for what it can judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.embedded_identity import tars
from benchmarks.embedded_identity.asked import plan
from benchmarks.embedded_identity.colour import lab, nearest_backdrop
from embedded import palette


@pytest.mark.parametrize("name", palette.BACKDROPS)
def test_a_backdrop_is_known_by_its_colour(name: str) -> None:
    level = np.array([round(255 * value) for value in palette.BACKDROPS[name]], dtype=np.uint8)
    picture = np.tile(level, (256, 256, 1))
    picture[64:, 64:192] = 127  # whoever stands before it
    assert nearest_backdrop(picture) == name


def test_lightness_is_that_of_the_standard() -> None:
    assert lab((1.0, 1.0, 1.0)) == pytest.approx([100.0, 0.0, 0.0], abs=0.02)
    assert lab((0.0, 0.0, 0.0)) == pytest.approx([0.0, 0.0, 0.0], abs=0.02)


def test_every_picture_has_a_name_of_its_own_and_asks_for_known_colours() -> None:
    asked = plan([1, 2, 77])
    assert len({item.name for item in asked}) == len(asked) == 3 * (4 * 4 + 4 + 2 * 2)
    assert {item.asked["background"] for item in asked} <= set(palette.BACKDROPS)
    assert {item.asked["hair"] for item in asked} <= set(palette.HAIR)


def test_what_one_machine_writes_the_other_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "TAR_BYTES", 4000)
    pictures = {f"{level}.jpg": np.full((32, 32, 3), level, dtype=np.uint8) for level in (0, 90, 180, 250)}
    tars.write_tars(pictures, {"people": 4}, tmp_path / "drawn")
    assert len(list((tmp_path / "drawn").glob("*.tar"))) == 2
    read = tars.read_tars(tmp_path / "drawn")
    assert read.keys() == pictures.keys()
    for name, picture in pictures.items():
        assert np.abs(read[name].astype(int) - picture).max() <= 2, "JPEG"
