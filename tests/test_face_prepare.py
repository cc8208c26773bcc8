"""From bytes to crop: every way to send the same photo gives the same face, and each policy does what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.errors import FaceNotFoundError, ImageTooLargeError, UnreadableImageError
from engine.face.crop import whole_picture
from engine.face.decode import ImageLimits
from engine.face.detect import FaceBox, YuNetDetector
from engine.face.prepare import FacePolicy, FacePreparer, PreparedFace
from engine.request import RgbImage
from tests.face_pictures import astronaut, png, saved, small, with_orientation

LANDSCAPE = (0, 0, 512, 400)
"""Not square, so that a turned picture can't pass for an upright one."""


@pytest.fixture(scope="module")
def preparer() -> FacePreparer:
    return FacePreparer(YuNetDetector())


@pytest.fixture(scope="module")
def upright(preparer: FacePreparer) -> PreparedFace:
    return prepare(preparer, saved(astronaut().crop(LANDSCAPE), "PNG"))


class ScriptedDetector:
    """Says what it was told to, and counts how often it was asked."""

    def __init__(self, *faces: FaceBox) -> None:
        self.faces = list(faces)
        self.num_calls = 0

    def detect(self, image: RgbImage) -> list[FaceBox]:
        self.num_calls += 1
        return self.faces


def prepare(preparer: FacePreparer, data: bytes, policy: FacePolicy = "prefer") -> PreparedFace:
    return preparer.prepare(data, media_type=None, policy=policy)


def face(left: int, top: int, side: int) -> FaceBox:
    return FaceBox(left_px=left, top_px=top, width_px=side, height_px=side, confidence=0.9)


def test_a_photo_becomes_a_crop_of_its_face(upright: PreparedFace) -> None:
    assert upright.crop.shape == (224, 224, 3)
    assert upright.box is not None
    assert upright.warning is None
    assert (upright.image_width_px, upright.image_height_px) == (512, 400)
    (found,) = YuNetDetector().detect(upright.crop)
    assert 224 * 0.4 < found.height_px < 224 * 0.8
    assert abs(found.left_px + found.width_px / 2 - 112) < 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_same_face(
    preparer: FacePreparer, upright: PreparedFace, orientation: int
) -> None:
    data = with_orientation(astronaut().crop(LANDSCAPE), orientation, "PNG")
    turned = prepare(preparer, data)
    assert (turned.image_width_px, turned.image_height_px) == (512, 400)
    assert turned.box == upright.box
    assert turned.key == upright.key
    assert (turned.crop == upright.crop).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_so_it_does_through_jpeg(preparer: FacePreparer, upright: PreparedFace, orientation: int) -> None:
    turned = prepare(preparer, with_orientation(astronaut().crop(LANDSCAPE), orientation, "JPEG", quality=95))
    assert_same_face(turned, upright)


def mean_difference(left: PreparedFace, right: PreparedFace) -> float:
    return float(np.abs(left.crop.astype(int) - right.crop.astype(int)).mean())


def assert_same_face(found: PreparedFace, expected: PreparedFace) -> None:
    """To a few pixels of the box, which moves by as much with every change to the picture."""
    assert found.box is not None
    assert expected.box is not None
    for name in ("left_px", "top_px", "width_px", "height_px"):
        assert abs(getattr(found.box, name) - getattr(expected.box, name)) <= 4, name
    assert mean_difference(found, expected) < 12


def test_the_tolerance_tells_a_mirrored_or_turned_face_from_the_same(
    preparer: FacePreparer, upright: PreparedFace
) -> None:
    photo = astronaut().crop(LANDSCAPE)
    for other in (photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), photo.rotate(20)):
        assert mean_difference(prepare(preparer, saved(other, "PNG")), upright) > 25


def dressed() -> dict[str, bytes]:
    photo = astronaut().crop(LANDSCAPE)
    pixels = np.asarray(photo)
    blank = Image.new("RGB", photo.size)
    return {
        "JPEG": saved(photo, "JPEG", quality=90),
        "progressive JPEG": saved(photo, "JPEG", quality=90, progressive=True),
        "CMYK JPEG": saved(photo.convert("CMYK"), "JPEG", quality=90),
        "WebP": saved(photo, "WEBP", quality=90),
        "lossless WebP": saved(photo, "WEBP", lossless=True),
        "GIF": saved(photo, "GIF"),
        "palette PNG": saved(photo.quantize(256), "PNG"),
        "PNG with alpha": saved(photo.convert("RGBA"), "PNG"),
        "16-bit PNG": png(pixels.astype(np.uint16) * 257),
        "animated GIF": saved(photo, "GIF", save_all=True, append_images=[blank], duration=100),
        "animated WebP": saved(photo, "WEBP", save_all=True, append_images=[blank], duration=100, quality=90),
        "animated PNG": saved(photo, "PNG", save_all=True, append_images=[blank], duration=100),
    }


DRESSED = dressed()


@pytest.mark.parametrize("name", DRESSED)
def test_every_dress_of_a_photo_gives_the_same_face(preparer: FacePreparer, upright: PreparedFace, name: str) -> None:
    assert_same_face(prepare(preparer, DRESSED[name]), upright)


@pytest.mark.parametrize("depth", [8, 16])
def test_greyscale_photos_have_faces_too(preparer: FacePreparer, upright: PreparedFace, depth: int) -> None:
    grey = np.asarray(astronaut().crop(LANDSCAPE).convert("L"))[:, :, None]
    found = prepare(preparer, png(grey if depth == 8 else grey.astype(np.uint16) * 257))
    assert found.box is not None
    assert upright.box is not None
    assert abs(found.box.left_px - upright.box.left_px) <= 8


def test_a_cut_out_portrait_on_nothing_is_found(preparer: FacePreparer) -> None:
    cut_out = astronaut().convert("RGBA")
    alpha = Image.new("L", cut_out.size, 0)
    alpha.paste(255, (140, 20, 310, 230))
    cut_out.putalpha(alpha)
    found = prepare(preparer, saved(cut_out, "PNG"))
    assert found.box is not None
    assert (found.crop[:5, :5] > 100).all()


# --- policies -------------------------------------------------------------------------------------------------------


def test_prefer_falls_back_to_the_whole_picture_and_says_so(preparer: FacePreparer) -> None:
    found = prepare(preparer, saved(small(300), "PNG"), "prefer")
    assert found.box is None
    assert found.warning is not None
    assert "whole picture was used" in found.warning
    assert (found.crop == whole_picture(np.asarray(small(300)), size_px=224)).all()


def test_require_refuses_a_picture_without_a_face(preparer: FacePreparer) -> None:
    with pytest.raises(FaceNotFoundError, match=r"send a photo that shows one face .* or set face_policy to prefer"):
        prepare(preparer, saved(small(300), "PNG"), "require")


def test_require_takes_a_face(preparer: FacePreparer, upright: PreparedFace) -> None:
    assert prepare(preparer, saved(astronaut().crop(LANDSCAPE), "PNG"), "require").key == upright.key


def test_ignore_takes_the_whole_picture_and_does_not_look() -> None:
    detector = ScriptedDetector(face(10, 10, 50))
    found = prepare(FacePreparer(detector), saved(astronaut(), "PNG"), "ignore")
    assert (found.box, found.warning, detector.num_calls) == (None, None, 0)
    assert (found.crop == whole_picture(np.asarray(astronaut()), size_px=224)).all()


def test_the_first_and_largest_face_is_taken_and_others_are_mentioned() -> None:
    faces = face(100, 100, 90), face(10, 10, 30)
    found = prepare(FacePreparer(ScriptedDetector(*faces)), saved(astronaut(), "PNG"))
    assert found.box == faces[0]
    assert found.warning is not None
    assert found.warning.startswith("2 faces were found")


@pytest.mark.parametrize("faces", [(), (face(0, 0, 50), face(60, 60, 40))])
def test_warnings_fit_into_a_header(faces: tuple[FaceBox, ...]) -> None:
    warning = prepare(FacePreparer(ScriptedDetector(*faces)), saved(small(200), "PNG")).warning
    assert warning is not None
    assert warning.isascii()
    assert warning.isprintable()


# --- keys -----------------------------------------------------------------------------------------------------------


def test_keys_are_equal_where_crops_are_and_only_there(preparer: FacePreparer, upright: PreparedFace) -> None:
    photo = astronaut().crop(LANDSCAPE)
    same = prepare(preparer, saved(photo, "WEBP", lossless=True))
    assert same.key == upright.key
    others = [
        prepare(preparer, saved(photo, "PNG"), "ignore"),
        prepare(FacePreparer(YuNetDetector(), margin=0.5), saved(photo, "PNG")),
        prepare(FacePreparer(YuNetDetector(), crop_size_px=112), saved(photo, "PNG")),
    ]
    assert len({upright.key, *(other.key for other in others)}) == 4


def test_keys_tell_shapes_apart_that_hold_the_same_bytes() -> None:
    black = saved(Image.new("RGB", (64, 64)), "PNG")
    keys = {prepare(FacePreparer(ScriptedDetector(), crop_size_px=size_px), black).key for size_px in (112, 224)}
    assert len(keys) == 2


# --- errors pass through --------------------------------------------------------------------------------------------


def test_decoding_errors_pass_through() -> None:
    preparer = FacePreparer(ScriptedDetector(), limits=ImageLimits(max_pixels=10_000))
    with pytest.raises(UnreadableImageError):
        prepare(preparer, b"hello")
    with pytest.raises(UnreadableImageError, match="declared"):
        preparer.prepare(saved(small(), "PNG"), media_type="text/plain", policy="prefer")
    with pytest.raises(ImageTooLargeError):
        prepare(preparer, saved(astronaut(), "PNG"))


@pytest.mark.parametrize("settings", [{"margin": -0.1}, {"crop_size_px": 0}])
def test_nonsense_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="margin must be 0 or more and crop_size_px positive"):
        FacePreparer(ScriptedDetector(), **settings)
