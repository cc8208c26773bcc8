"""Whatever picture arrives, the same upright sRGB pixels come out, or an error a person can act on."""

from __future__ import annotations

import io
import pickle
import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile
from PIL.ImageOps import exif_transpose

from engine.errors import ImageTooLargeError, ReferenceImageError, UnreadableImageError
from engine.face.decode import ACCEPTED_MEDIA_TYPES, ImageLimits, decode_image
from engine.request import RgbImage
from tests.face_pictures import PNG_SIGNATURE, bombs, png, png_chunk, saved, small, with_orientation

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")


def decode(data: bytes, *, media_type: str | None = None, limits: ImageLimits | None = None) -> RgbImage:
    image = decode_image(data, media_type=media_type, limits=limits or ImageLimits())
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    return image


def difference(left: RgbImage, right: RgbImage | Image.Image) -> int:
    """Largest difference of any value."""
    other = np.asarray(right).astype(int)
    assert left.shape == other.shape
    return int(np.abs(left.astype(int) - other).max())


# --- colours --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", FORMATS)
def test_plain_pictures_come_out_as_pillow_alone_reads_them(image_format: str) -> None:
    data = saved(small(), image_format)
    with Image.open(io.BytesIO(data)) as oracle:
        assert difference(decode(data), oracle.convert("RGB")) == 0


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_transparency_lies_over_white(image_format: str) -> None:
    options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
    image = small().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    alpha = np.asarray(image.getchannel("A"))[:, :, None] / 255
    expected = np.asarray(small()) * alpha + 255 * (1 - alpha)
    assert difference(decode(saved(image, image_format, **options)), expected.round().astype(np.uint8)) <= 1


def test_grey_with_alpha_lies_over_white() -> None:
    values = np.full((20, 20, 2), 0, np.uint8)
    values[:, 10:, 1] = 255
    image = decode(png(values))
    assert (image[:, :10] == 255).all()
    assert (image[:, 10:] == 0).all()


def test_a_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (20, 20), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (10, 0, 20, 20))
    for data in (
        saved(image, "PNG", transparency=0),  # one entry
        saved(image, "PNG", transparency=b"\x00\xff"),  # an alpha for each entry
        saved(image, "GIF", transparency=0),
    ):
        decoded = decode(data)
        assert decoded[5, 5].tolist() == [255, 255, 255]
        assert decoded[5, 15].tolist() == [0, 0, 255]


def test_half_transparent_palette_entries_blend() -> None:
    image = Image.new("P", (20, 20), 0)
    image.putpalette([0, 0, 0, 0, 0, 255])
    assert decode(saved(image, "PNG", transparency=b"\x80\x40"))[5, 5].tolist() == [127, 127, 127]


def test_opaque_palettes_keep_their_colours() -> None:
    image = small().quantize(64)
    assert difference(decode(saved(image, "PNG")), image.convert("RGB")) == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_is_white(channels: int) -> None:
    values = np.full((20, 20, channels), 10, np.uint8)
    values[:, 10:] = 200
    key = b"\x00\x0a" * channels
    decoded = decode(png(values, extra=((b"tRNS", key),)))
    assert (decoded[:, :10] == 255).all()
    assert (decoded[:, 10:] == 200).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_values_are_scaled_not_cut(channels: int) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64, 1)
    values = np.repeat(ramp, channels, axis=2)
    if channels in (2, 4):
        values[:, :, -1] = 65535
    expected = np.repeat((ramp / 257.0).round().astype(np.uint8), 3, axis=2)
    assert difference(decode(png(values)), expected) <= (0 if channels == 1 else 1)  # Pillow keeps the high byte


@pytest.mark.parametrize("channels", [1, 3])
def test_a_16_bit_transparent_colour_is_ignored_and_harms_nothing(channels: int) -> None:
    values = np.full((20, 20, channels), 0x1234, np.uint16)
    decoded = decode(png(values, extra=((b"tRNS", b"\x12\x34" * channels),)))
    assert (abs(decoded.astype(int) - 0x12) <= 1).all()


@pytest.mark.parametrize("mode", ["1", "L"])
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF"])
def test_grey_and_black_and_white(mode: str, image_format: str) -> None:
    image = small().convert(mode)
    if (mode, image_format) == ("1", "JPEG"):
        image = image.convert("L")
    tolerance = 8 if image_format == "JPEG" else 0
    if mode == "L" or image_format != "JPEG":
        assert difference(decode(saved(image, image_format)), image.convert("RGB")) <= tolerance
    else:
        assert decode(saved(image, image_format)).shape == (64, 64, 3)


def test_cmyk_jpeg_is_not_inverted() -> None:
    """Adobe stores ink upside down; Pillow writes it so too."""
    image = small().convert("CMYK")
    data = saved(image, "JPEG", quality=95)
    assert b"Adobe" in data
    assert difference(decode(data), image.convert("RGB")) <= 12


def swapped_profile() -> bytes:
    """An RGB profile in which red and blue have changed places: its effect can't be overlooked."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    return profile.replace(b"rXYZ", b"?XYZ", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"?XYZ", b"bXYZ", 1)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_embedded_profiles_are_converted_to_srgb(image_format: str) -> None:
    data = saved(Image.new("RGB", (32, 32), (250, 20, 20)), image_format, icc_profile=swapped_profile(), quality=95)
    red, _, blue = decode(data)[16, 16].tolist()
    assert blue > 200 > 100 > red


def test_a_profile_of_srgb_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert difference(decode(saved(small(), "PNG", icc_profile=profile)), small()) == 0


@pytest.mark.parametrize(
    "profile",
    [b"nonsense", swapped_profile()[:200], swapped_profile()[:-300], b"\0" * 5_000, bytes(5 * 2**20)],
    ids=["text", "cut short", "cut at its end", "zeros", "enormous"],
)
def test_a_profile_that_cannot_be_used_is_ignored(profile: bytes) -> None:
    assert decode(saved(small(), "JPEG", icc_profile=profile)).shape == (64, 64, 3)


def test_a_profile_of_other_colours_is_ignored() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert difference(decode(saved(small(), "PNG", icc_profile=lab)), small()) == 0


# --- orientation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_orientation_turns_as_pillow_does(image_format: str, orientation: int) -> None:
    data = with_orientation(small().crop((0, 0, 64, 40)), orientation, image_format)
    with Image.open(io.BytesIO(data)) as file:
        assert difference(decode(data), exif_transpose(file).convert("RGB")) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_of_a_picture_give_the_same_pixels(orientation: int) -> None:
    upright = small().crop((0, 0, 64, 40))
    assert difference(decode(with_orientation(upright, orientation, "PNG")), upright) == 0


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0XX*\0\x08\0\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",  # 65,535 entries promised, none there
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",  # orientation 9
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x00\0\0\0\0\0\0",  # orientation 0
    ],
)
def test_broken_metadata_does_not_cost_a_good_picture(exif: bytes) -> None:
    plain = saved(small(), "JPEG")
    assert difference(decode(saved(small(), "JPEG", exif=exif)), decode(plain)) == 0


# --- animations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_taken(image_format: str) -> None:
    first, *others = (Image.new("RGB", (40, 30), colour) for colour in ("red", "lime", "blue"))
    data = saved(first, image_format, save_all=True, append_images=others, duration=50, loop=0)
    image = decode(data)
    assert image.shape == (30, 40, 3)
    assert difference(image, first) <= 5


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("media_type", [None, *ACCEPTED_MEDIA_TYPES, "IMAGE/PNG", "image/png; charset=binary"])
def test_the_content_decides_not_the_declared_type(media_type: str | None) -> None:
    assert difference(decode(saved(small(), "PNG"), media_type=media_type), small()) == 0


@pytest.mark.parametrize("media_type", ["", "image/svg+xml", "image/tiff", "text/html", "image/", "png"])
def test_other_declared_types_are_refused(media_type: str) -> None:
    with pytest.raises(UnreadableImageError, match="send image/jpeg, image/png"):
        decode(saved(small(), "PNG"), media_type=media_type)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"\0", "not a picture"),
        (b"hello" * 50, "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"%PDF-1.7", "PDF"),
        (saved(small(), "BMP"), "BMP"),
        (saved(small(), "TIFF"), "TIFF"),
        (b"\xff\xd8\xff", "cut short"),
        (b"\x89PNG\r\n\x1a\n", "cut short"),
        (b"GIF89a", "cut short"),
        (b"RIFF\xff\0\0\0WEBP", "cut short"),
        (b"RIFF\4\0\0\0WEBP", "no image data"),
        (b"\xff\xd8\xff\xd9", "no image data"),
    ],
)
def test_what_is_not_a_picture_is_refused_and_named(data: bytes, says: str) -> None:
    with pytest.raises(UnreadableImageError, match=says):
        decode(data)


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_file_cut_anywhere_is_refused(image_format: str) -> None:
    data = saved(small(), image_format)
    for length in [*range(12, len(data) - 1, max(1, len(data) // 60)), len(data) - 2]:
        with pytest.raises(UnreadableImageError):
            decode(data[:length])


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (30_000, 100), (6000, 5000)])
def test_bombs_are_refused_by_their_header(image_format: str, width: int, height: int) -> None:
    with pytest.raises(
        ImageTooLargeError, match=rf"{width}×{height} pixels; at most 25 million pixels and 16384 a side"
    ):
        decode(bombs(width, height)[image_format])


def test_a_gif_frame_that_widens_its_screen_is_counted() -> None:
    data = saved(small(), "GIF")
    descriptor = data.index(b"\x2c\0\0\0\0\x40\0\x40\0")
    widened = data[: descriptor + 1] + b"\xff\xff\xff\xff" + data[descriptor + 5 :]
    with pytest.raises(ImageTooLargeError, match="65599×65599"):
        decode(widened)


def test_limits_hold_at_their_edge() -> None:
    data = saved(small(), "PNG")
    limits = ImageLimits(max_bytes=len(data), max_pixels=64 * 64, max_side_px=64, min_side_px=64)
    assert decode(data, limits=limits).shape == (64, 64, 3)
    for tighter, error, says in (
        (ImageLimits(max_bytes=len(data) - 1), ImageTooLargeError, f"has {len(data)} bytes"),
        (ImageLimits(max_pixels=64 * 64 - 1), ImageTooLargeError, "64×64"),
        (ImageLimits(max_side_px=63), ImageTooLargeError, "64×64"),
        (ImageLimits(min_side_px=65), UnreadableImageError, "only 64×64 pixels; at least 65"),
    ):
        with pytest.raises(error, match=says):
            decode(data, limits=tighter)


@pytest.mark.parametrize(
    "values",
    [{"max_bytes": 0}, {"min_side_px": 0}, {"max_side_px": 8}, {"max_pixels": 100}, {"max_pixels": 90_000_000}],
)
def test_limits_that_make_no_sense_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ImageLimits(**values)


def test_errors_cross_processes_and_hold_nothing_of_the_decoder() -> None:
    good = saved(small(), "PNG")
    data = good[: len(PNG_SIGNATURE) + 25] + png_chunk(b"IDAT", b"not compressed") + png_chunk(b"IEND", b"")
    with pytest.raises(UnreadableImageError) as caught:
        decode(data)
    assert str(caught.value) == "the PNG picture is damaged; save it again and resend it"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_no_global_state_is_touched() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    for image_format in FORMATS:
        decode(saved(small(), image_format))
        with pytest.raises(ReferenceImageError):
            decode(bombs(50_000, 50_000)[image_format])
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before
