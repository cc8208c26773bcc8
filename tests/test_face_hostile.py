"""Files made to hurt: they end in a picture or in a ReferenceImageError, in bounded work, without a warning."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.errors import ReferenceImageError, UnreadableImageError
from engine.face.container import read_container
from engine.face.container.jpeg import MAX_SCANS
from engine.face.decode import ImageLimits, decode_image
from engine.request import RgbImage
from tests.face_pictures import PNG_SIGNATURE, png_chunk, saved, small, with_orientation

LIMITS = ImageLimits(max_pixels=1_000_000)


def decode(data: bytes) -> RgbImage:
    return decode_image(data, media_type=None, limits=LIMITS)


def with_chunks(data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """PNG ``data`` with further chunks right after its header."""
    end = len(PNG_SIGNATURE) + 25
    return data[:end] + b"".join(png_chunk(kind, payload) for kind, payload in chunks) + data[end:]


def same(data: bytes, plain: bytes) -> bool:
    return bool((decode(data) == decode(plain)).all())


# --- PNG ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"zTXt", b"comment\0\0" + zlib.compress(bytes(2**24), 9))] * 8,
        [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2**24), 9))] * 8,
        [(b"tEXt", b"x" * 100_000)] * 8,
        [(b"tEXt", b"")] * 20_000,
        [(b"prVt", bytes(1000))] * 100,
        [(b"acTL", b"\0\0\0\0\0\0\0\0")],  # an animation of no frames: Pillow warns
        [(b"acTL", b"\xff\xff\xff\xff\0\0\0\0"), (b"fcTL", bytes(26))],
        [(b"fcTL", b"\0")],
        [(b"gAMA", b"")],
        [(b"eXIf", b"")],
        [(b"pHYs", b"\0")],
    ],
    ids=lambda chunks: f"{len(chunks)} {chunks[0][0].decode()}",
)
def test_png_extras_are_not_even_read(chunks: list[tuple[bytes, bytes]]) -> None:
    plain = saved(small(), "PNG")
    assert same(with_chunks(plain, *chunks), plain)


def test_png_profile_that_unpacks_to_much_is_refused_or_ignored() -> None:
    plain = saved(small(), "PNG")
    bomb = with_chunks(plain, (b"iCCP", b"p\0\0" + zlib.compress(bytes(2**26), 9)))
    with pytest.raises(UnreadableImageError, match="PNG picture is damaged"):
        decode(bomb)


def test_png_profiles_beyond_the_first_are_not_unpacked() -> None:
    plain = saved(small(), "PNG")
    profile = b"p\0\0" + zlib.compress(bytes(2**19), 9)
    dressed = with_chunks(plain, *[(b"iCCP", profile)] * 100)
    assert same(dressed, plain)
    assert read_container(dressed).first_frame.count(b"iCCP") == 1


def test_png_with_more_image_data_than_pixels_stops_at_the_pixels() -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 0, 0, 0, 0))
    data = PNG_SIGNATURE + header + png_chunk(b"IDAT", zlib.compress(bytes(2**27), 9)) + png_chunk(b"IEND", b"")
    assert not decode(data).any()


def test_png_with_a_second_header_keeps_to_the_first() -> None:
    plain = saved(small(), "PNG")
    other = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    assert same(with_chunks(plain, (b"IHDR", other)), plain)


def test_png_in_thousands_of_empty_pieces() -> None:
    plain = saved(small(), "PNG")
    assert same(with_chunks(plain, *[(b"IDAT", b"")] * 20_000), plain)
    with pytest.raises(UnreadableImageError, match="more than 200000 parts"):
        decode(with_chunks(plain, *[(b"IDAT", b"")] * 200_000))


def test_png_with_a_flipped_bit_is_refused() -> None:
    data = bytearray(saved(small(), "PNG"))
    data[-30] ^= 1
    with pytest.raises(UnreadableImageError, match="checksum"):
        decode(bytes(data))


# --- JPEG -----------------------------------------------------------------------------------------------------------


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(payload)) + payload


@pytest.mark.parametrize(
    "extra",
    [
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),  # several pictures in one file: Pillow warns
        segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\xff" * 20),
        segment(0xED, b"Photoshop 3.0\x008BIM" + b"\xff" * 10),
        segment(0xFE, b"comment") * 2000,
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>" * 100),
        segment(0xE0, b"JFIF"),
        segment(0xEE, b"Adobe"),
        b"\0\0\0junk",
        b"\xff" * 50,
    ],
    ids=["multi-picture", "EXIF", "Photoshop", "comments", "XMP", "JFIF", "Adobe", "junk", "fill"],
)
def test_jpeg_extras_change_nothing(extra: bytes) -> None:
    plain = saved(small(), "JPEG")
    end_of_first = 20  # the start, and a JFIF segment
    assert same(plain[:end_of_first] + extra + plain[end_of_first:], plain)


def test_jpeg_of_endless_scans_is_refused() -> None:
    """Each costs a few bytes to send and a pass over the picture to decode."""
    data = saved(small(), "JPEG", progressive=True)
    last_scan = data[data.rfind(b"\xff\xc4") : -2]
    assert decode(data[:-2] + last_scan * 10 + b"\xff\xd9").shape == (64, 64, 3)
    with pytest.raises(UnreadableImageError, match=f"more than {MAX_SCANS} scans; save it again"):
        decode(data[:-2] + last_scan * MAX_SCANS + b"\xff\xd9")


def test_jpeg_with_two_frame_headers_is_refused() -> None:
    data = saved(small(), "JPEG")
    header = struct.pack(">BHHB", 8, 50_000, 50_000, 3) + bytes(9)
    with pytest.raises(UnreadableImageError, match="more than one frame header"):
        decode(data[:2] + segment(0xC0, header) + data[2:])


def test_jpeg_thumbnail_and_trailer_are_left_behind() -> None:
    thumbnail = saved(small(16), "JPEG")
    plain = saved(small(), "JPEG")
    dressed = plain[:2] + segment(0xE1, b"Exif\0\0" + thumbnail) + plain[2:] + thumbnail * 3
    assert same(dressed, plain)
    assert len(read_container(dressed).first_frame) <= len(plain)


# --- GIF and WebP ---------------------------------------------------------------------------------------------------


def test_gif_comments_and_later_frames_are_left_behind() -> None:
    plain = saved(small(), "GIF")
    assert plain[13 + 768 : 13 + 769] in (b"\x2c", b"\x21")
    comments = b"\x21\xfe" + (b"\xff" + bytes(255)) * 20_000 + b"\0"
    dressed = plain[: 13 + 768] + comments + plain[13 + 768 : -1] + b"\x2c" + bytes(5000)
    assert same(dressed, plain)
    assert len(read_container(dressed).first_frame) <= len(plain)


def test_gif_of_a_million_blocks_is_refused() -> None:
    plain = saved(small(), "GIF")
    with pytest.raises(UnreadableImageError, match="more than 200000 parts"):
        decode(plain[: 13 + 768] + b"\x21\xfe" + b"\1x" * 1_000_000 + b"\0" + plain[13 + 768 :])


def test_gif_of_a_million_empty_extensions_is_refused() -> None:
    plain = saved(small(), "GIF")
    with pytest.raises(UnreadableImageError, match="more than 200000 parts"):
        decode(plain[: 13 + 768] + b"\x21\xf9\0" * 1_000_000 + plain[13 + 768 :])


def test_webp_animation_of_many_frames_costs_one() -> None:
    frames = [Image.new("RGB", (32, 32), (i, 255 - i, 0)) for i in range(250)]
    data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    one = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:2], lossless=True)
    assert (decode(data) == np.asarray(frames[0])).all()
    assert len(read_container(data).first_frame) < len(one)


def test_webp_whose_frame_does_not_fit_its_canvas_is_refused() -> None:
    data = saved(small(), "WEBP", lossless=True)
    body = b"WEBP" + struct.pack("<4sI", b"VP8X", 10) + b"\0\0\0\0" + b"\x1f\0\0" * 2 + data[12:]
    with pytest.raises(UnreadableImageError, match="WEBP picture is damaged"):
        decode(b"RIFF" + struct.pack("<I", len(body)) + body)


# --- anything -------------------------------------------------------------------------------------------------------

SEEDS = [
    saved(small(), "JPEG"),
    saved(small(), "JPEG", progressive=True),
    saved(small().convert("CMYK"), "JPEG"),
    with_orientation(small(), 6, "JPEG"),
    saved(small(), "PNG"),
    saved(small().quantize(16), "PNG", transparency=b"\0\x80\xff"),
    with_orientation(small(), 5, "PNG"),
    saved(small(), "WEBP"),
    saved(small().convert("RGBA"), "WEBP", lossless=True),
    with_orientation(small(), 8, "WEBP"),
    saved(small(), "WEBP", save_all=True, append_images=[small().rotate(90)], duration=10),
    saved(small(), "GIF"),
    saved(small(), "GIF", save_all=True, append_images=[small().rotate(90)], duration=10),
]
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(("set", "cut", "insert")), st.binary(min_size=1, max_size=6)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=400)
@given(st.sampled_from(SEEDS), EDITS, st.booleans())
def test_damaged_files_give_a_picture_or_a_reference_image_error(
    seed: bytes, edits: list[tuple[float, str, bytes]], is_in_head: bool
) -> None:
    data = bytearray(seed)
    for place, kind, value in edits:
        at = int(place * (min(len(data), 200) if is_in_head else len(data)))
        if kind == "set":
            data[at : at + len(value)] = value
        elif kind == "cut":
            del data[at : at + len(value)]
        else:
            data[at:at] = value
    try:
        image = decode(bytes(data))
    except ReferenceImageError as error:
        assert len(str(error)) < 250
        assert "0x" not in str(error)
        assert "<" not in str(error)
    else:
        assert image.dtype == np.uint8
        assert image.shape[0] * image.shape[1] <= LIMITS.max_pixels


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", PNG_SIGNATURE, b"GIF89a", b"RIFF\x80\0\0\0WEBP"])
)
def test_arbitrary_bytes_give_a_reference_image_error(tail: bytes, head: bytes) -> None:
    with pytest.raises(ReferenceImageError):
        decode(head + tail)
