"""Identity vectors: the same person scores above the threshold, others below it; on a photo and on drawn people."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import io
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import ModelLoadError
from engine.face import identity
from engine.face.detect import YuNetDetector
from engine.face.identity import SAME_PERSON_SIMILARITY, DlibIdentity, IdentityVector, area_under_curve, similarity
from tests.face_pictures import astronaut, saved

SHEET = Path(__file__).parent / "data" / "drawn_people.jpg"
NUM_PEOPLE, NUM_VIEWS = 6, 5


@functools.cache
def model() -> DlibIdentity:
    return DlibIdentity(YuNetDetector())


def vector(picture: Image.Image) -> IdentityVector:
    found = model().vector(np.asarray(picture.convert("RGB")))
    assert found is not None
    return found


@functools.cache
def people() -> list[list[IdentityVector]]:
    """Six drawn people in five views each (``embedded.dataset``)."""
    with Image.open(SHEET) as file:
        sheet = file.convert("RGB")
    width, height = sheet.width // NUM_VIEWS, sheet.height // NUM_PEOPLE
    corners = [[(x * width, y * height) for x in range(NUM_VIEWS)] for y in range(NUM_PEOPLE)]
    return [[vector(sheet.crop((x, y, x + width, y + height))) for x, y in row] for row in corners]


def test_a_picture_is_itself() -> None:
    photo = vector(astronaut())
    assert photo.shape == (128,)
    assert photo.dtype == np.float32
    assert similarity(photo, photo) == 1.0
    assert similarity(photo, vector(astronaut())) == 1.0


VARIANTS: dict[str, Callable[[], Image.Image]] = {
    "JPEG of quality 30": lambda: Image.open(io.BytesIO(saved(astronaut(), "JPEG", quality=30))),
    "WebP of quality 50": lambda: Image.open(io.BytesIO(saved(astronaut(), "WEBP", quality=50))),
    "half the size": lambda: astronaut().resize((256, 256)),
    "twice the size": lambda: astronaut().resize((1024, 1024)),
    "mirrored": lambda: astronaut().transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned by 15 degrees": lambda: astronaut().rotate(15),
    "grey": lambda: astronaut().convert("L"),
    "cropped": lambda: astronaut().crop((130, 20, 330, 240)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_photo_stays_the_person_in_every_dress(variant: str) -> None:
    assert similarity(vector(astronaut()), vector(VARIANTS[variant]())) > 0.75


def test_people_are_told_apart() -> None:
    same: list[float] = []
    other: list[float] = []
    for who, views in enumerate(people()):
        for whom, others in enumerate(people()):
            for view in views[1:]:
                (same if who == whom else other).append(similarity(others[0], view))
    assert min(same) > SAME_PERSON_SIMILARITY
    assert np.median(same) - np.median(other) > 0.2
    assert area_under_curve(np.array(same), np.array(other)) > 0.98


def test_nobody_drawn_is_the_person_in_the_photo() -> None:
    photo = vector(astronaut())
    assert max(similarity(photo, view) for views in people() for view in views) < SAME_PERSON_SIMILARITY


def test_no_face_gives_no_vector() -> None:
    assert model().vector(np.full((256, 256, 3), 127, dtype=np.uint8)) is None


def test_the_largest_face_counts() -> None:
    picture = Image.new("RGB", (768, 512))
    picture.paste(astronaut(), (256, 0))
    with Image.open(SHEET) as sheet:
        picture.paste(sheet.crop((0, 0, 160, 160)), (0, 0))
    assert similarity(vector(astronaut()), vector(picture)) > 0.9


def test_threads_do_not_mix_faces() -> None:
    with Image.open(SHEET) as file:
        pictures = [np.asarray(astronaut()), np.asarray(file.convert("RGB"))[:160, :160]]
    alone = [model().vector(picture) for picture in pictures]
    together: dict[int, IdentityVector | None] = {}

    def work(index: int) -> None:
        together[index] = model().vector(pictures[index % 2])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, found in together.items():
        np.testing.assert_array_equal(found, alone[index % 2])
    assert len(together) == 6


def test_similarity_is_a_straight_line_through_the_threshold() -> None:
    here, away = np.zeros(128, dtype=np.float32), np.zeros(128, dtype=np.float32)
    for distance, expected in ((0.0, 1.0), (0.3, 0.75), (0.6, 0.5), (1.2, 0.0), (2.0, 0.0)):
        away[0] = distance
        assert similarity(here, away) == pytest.approx(expected, abs=1e-6)
        assert similarity(away, here) == similarity(here, away)


def test_area_under_curve() -> None:
    assert area_under_curve(np.array([0.8, 0.9]), np.array([0.1, 0.7])) == 1.0
    assert area_under_curve(np.array([0.1]), np.array([0.8, 0.9])) == 0.0
    assert area_under_curve(np.array([0.5, 0.5]), np.array([0.5])) == 0.5
    assert area_under_curve(np.array([0.4, 0.9]), np.array([0.3, 0.5])) == 0.75
    with pytest.raises(ValueError, match="of both kinds"):
        area_under_curve(np.array([]), np.array([0.5]))


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "dlib", None)
        with pytest.raises(ModelLoadError, match=r"needs dlib: pip install 'likeness\[identity\]'"):
            DlibIdentity(YuNetDetector())
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ModelLoadError, match=r"needs face-recognition-models==0\.3\.0: pip install"):
            identity._models_folder()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: "0.4.0")
        with pytest.raises(ModelLoadError, match=r"==0\.3\.0, not 0\.4\.0"):
            identity._models_folder()


def test_only_the_models_that_may_be_used_are_opened() -> None:
    source = Path(identity.__file__).read_text(encoding="utf-8")
    assert "68" not in source  # dlib's 68-point predictor is not for commercial use
    assert "pkg_resources" not in sys.modules
