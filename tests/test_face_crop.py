"""Geometry of crops: nothing of the face is lost, nothing is distorted, and the whole picture is CLIP's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from engine.face.crop import square_crop, whole_picture
from engine.face.detect import FaceBox
from engine.request import RgbImage
from tests.face_pictures import astronaut


def face(left: int, top: int, width: int, height: int) -> FaceBox:
    return FaceBox(left_px=left, top_px=top, width_px=width, height_px=height, confidence=0.9)


def coordinates(width: int, height: int) -> RgbImage:
    """Red tells the column (0 … 255 from edge to edge), green the row."""
    red = np.linspace(0, 255, width)[None].repeat(height, 0)
    green = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return np.stack([red, green, np.zeros_like(red)], axis=2).astype(np.uint8)


@st.composite
def pictures_and_faces(draw: st.DrawFn) -> tuple[int, int, FaceBox]:
    width, height = draw(st.integers(20, 300)), draw(st.integers(20, 300))
    left, top = draw(st.integers(0, width - 8)), draw(st.integers(0, height - 8))
    return width, height, face(left, top, draw(st.integers(8, width - left)), draw(st.integers(8, height - top)))


@given(pictures_and_faces(), st.floats(0.0, 1.5), st.sampled_from((32, 224)))
def test_the_whole_face_is_in_the_crop(drawn: tuple[int, int, FaceBox], margin: float, size_px: int) -> None:
    width, height, box = drawn
    crop = square_crop(coordinates(width, height), box, margin=margin, size_px=size_px)
    assert crop.shape == (size_px, size_px, 3)
    assert crop.dtype == np.uint8
    middle = size_px // 2
    for channel, line, start, length, total in (
        (0, crop[middle, :, 0], box.left_px, box.width_px, width),
        (1, crop[:, middle, 1], box.top_px, box.height_px, height),
    ):
        # Each pixel of the crop shows the mean of its share of the picture; one such share of slack at either end.
        share = 255 / (total - 1) * max(1.0, max(width, height) / size_px)
        assert line[0] <= start * 255 / (total - 1) + share + 2, channel
        assert line[-1] >= (start + length - 1) * 255 / (total - 1) - share - 2, channel


@given(pictures_and_faces(), st.floats(0.0, 1.0))
def test_width_and_height_are_scaled_alike(drawn: tuple[int, int, FaceBox], margin: float) -> None:
    """Steps from pixel to pixel are as large across as down, in picture pixels."""
    width, height, box = drawn
    if max(box.width_px, box.height_px) > min(width, height):
        return  # padded: edges repeat
    crop = square_crop(coordinates(width, height), box, margin=margin, size_px=64).astype(float)
    across = (crop[32, -9, 0] - crop[32, 8, 0]) * (width - 1) / 255
    down = (crop[-9, 32, 1] - crop[8, 32, 1]) * (height - 1) / 255
    assert abs(across - down) <= 2 * max(width, height) / 255 + 0.02 * max(width, height)


def test_the_crop_is_centred_on_the_face_where_there_is_room() -> None:
    crop = square_crop(coordinates(401, 401), face(180, 160, 40, 80), margin=0.25, size_px=240)
    # 80 · 1.5 = 120 pixels around (200, 200)
    expected = np.array([200, 200]) * 255 / 400
    assert np.abs(crop[119:121, 119:121, :2].mean((0, 1)) - expected).max() <= 1
    assert abs(crop[120, 0, 0] - 140 * 255 / 400) <= 1
    assert abs(crop[120, -1, 0] - 260 * 255 / 400) <= 1


def test_a_face_at_the_edge_moves_the_crop_inwards_instead_of_padding() -> None:
    crop = square_crop(coordinates(400, 400), face(0, 300, 60, 100), margin=0.5, size_px=200)
    assert crop[:, 0, 0].max() <= 1
    assert crop[-1, :, 1].min() >= 254
    assert (np.diff(crop[100, :, 0].astype(int)) >= 0).all()
    assert crop[100, -1, 0] == pytest.approx(200 * 255 / 399, abs=1.5)


def test_a_narrow_picture_takes_margin_not_padding() -> None:
    crop = square_crop(coordinates(100, 300), face(20, 100, 60, 80), margin=1.0, size_px=100)
    assert crop[50, 0, 0] <= 2
    assert crop[50, -1, 0] >= 253
    # rows 90 to 190: as tall as the picture is wide
    assert crop[0, 50, 1] == pytest.approx(90 * 255 / 299, abs=1.5)


def test_a_picture_too_narrow_for_the_face_repeats_its_edges() -> None:
    image = coordinates(40, 200)
    crop = square_crop(image, face(0, 50, 40, 100), margin=0.0, size_px=100)
    assert (crop[:, :28, 0] == 0).all()
    assert (crop[:, -28:, 0] == 255).all()
    assert crop[0, 50, 1] == pytest.approx(50 * 255 / 199, abs=1.5)
    assert crop[-1, 50, 1] == pytest.approx(149 * 255 / 199, abs=1.5)


def test_shrinking_averages_instead_of_skipping() -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = square_crop(stripes, face(100, 100, 200, 200), margin=0.0, size_px=50)
    assert np.abs(crop.astype(int) - 128).max() <= 4


def test_a_crop_equals_the_resized_part_of_the_picture() -> None:
    """Against Pillow doing it the long way: resize everything, then cut."""
    image = np.array(astronaut())
    crop = square_crop(image, face(128, 64, 128, 128), margin=0.0, size_px=64)
    whole = np.asarray(astronaut().resize((256, 256), Image.Resampling.BICUBIC))
    assert (crop == whole[32:96, 64:128]).all()


SIZES = [(512, 512), (512, 300), (300, 512), (225, 1000), (1000, 333), (100, 100), (64, 200), (224, 224), (1279, 851)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_whole_picture_is_what_clip_preprocessing_makes(size: tuple[int, int]) -> None:
    image = np.array(astronaut().resize(size))
    oracle = CLIPImageProcessorPil(
        size={"shortest_edge": 224},
        crop_size={"height": 224, "width": 224},
        resample=Image.Resampling.BICUBIC,
        do_convert_rgb=True,
        do_rescale=False,
        do_normalize=False,
    )
    (expected,) = oracle(Image.fromarray(image), return_tensors="np")["pixel_values"]
    found = whole_picture(image, size_px=224).transpose(2, 0, 1)
    assert np.abs(found.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_a_very_long_picture_costs_no_more_than_its_middle() -> None:
    image = np.zeros((16, 16_384, 3), np.uint8)
    image[:, 8_184:8_200] = 255
    assert (whole_picture(image, size_px=224)[:, 20:-20] == 255).all()


def test_results_are_fresh_and_writable() -> None:
    image = np.array(astronaut())
    image.setflags(write=False)
    for result in (whole_picture(image, size_px=512), square_crop(image, face(0, 0, 512, 512), margin=0, size_px=512)):
        assert (result == image).all()
        result[0] = 0


def test_nonsense_is_refused() -> None:
    image = np.array(astronaut())
    with pytest.raises(ValueError, match="margin must not be negative"):
        square_crop(image, face(0, 0, 10, 10), margin=-0.1, size_px=224)
    with pytest.raises(ValueError, match="size_px must be positive"):
        whole_picture(image, size_px=0)
