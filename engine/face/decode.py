"""The caller's bytes become one upright sRGB picture, or an error that says what to send instead.

Whatever arrives is hostile until shown otherwise: its size is checked before anything is parsed, its pixel count before
anything is decoded, and the decoder sees only the parts that make the first frame (:mod:`engine.face.container`).
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import GifImagePlugin, Image, ImageCms, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from engine.errors import ImageTooLargeError, UnreadableImageError
from engine.face.container import Container, ImageFormat, read_container
from engine.request import RgbImage

ACCEPTED_MEDIA_TYPES: Final = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/jpg")
"""What a data URL may declare. The content decides what the picture is: callers label PNG files ``image/jpeg``, and a
GIF may come under any of these names. ``image/jpg`` is no registered type but common."""

_PILLOW_WARNS_ABOVE_PIXELS = 89_478_485
"""Pillow's own MAX_IMAGE_PIXELS. It is global to the process and answers with a warning, so it is neither changed nor
relied on: our limit lies below it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImageLimits:
    """What a reference picture may be at most, and at least.

    Decoding takes up to 23 bytes a pixel at its peak (measured: WebP 22.3, PNG with alpha 18, JPEG 14.5), so
    ``max_pixels`` bounds memory: 25 million hold a phone's 24-megapixel photo and may take 0.6 GB for a second.

    Attributes:
        max_bytes: size of the file.
        max_pixels: width × height as stored.
        max_side_px, min_side_px: width and height, each.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 25_000_000
    max_side_px: int = 16_384
    min_side_px: int = 16

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.min_side_px < 1 or self.max_side_px < self.min_side_px:
            raise ValueError(f"image limits must be positive and max_side_px at least min_side_px, got {self}")
        if not self.min_side_px**2 <= self.max_pixels <= _PILLOW_WARNS_ABOVE_PIXELS:
            raise ValueError(
                f"max_pixels must be between min_side_px² and {_PILLOW_WARNS_ABOVE_PIXELS}, got {self.max_pixels}"
            )


def decode_image(data: bytes, *, media_type: str | None, limits: ImageLimits) -> RgbImage:
    """Decode a JPEG, PNG, WebP or GIF.

    The first frame of an animation, turned as EXIF says, in sRGB. Transparency is laid over white: cut-out portraits
    are made for white pages, and on black dark hair would vanish. 16-bit values are scaled, not cut off.

    Args:
        data: the file.
        media_type: as the caller declared it, ``None`` where nothing was declared; one of ``ACCEPTED_MEDIA_TYPES``.
        limits: how large it may be.

    Returns:
        ``(H, W, 3)`` uint8 sRGB. Possibly read-only.

    Raises:
        UnreadableImageError: not a whole picture of an accepted kind, or smaller than the limits ask for.
        ImageTooLargeError: more bytes or pixels than allowed; no pixel was decoded.
    """
    _check_media_type(media_type)
    if not data:
        raise UnreadableImageError("the picture is empty (0 bytes); send the file's content")
    if len(data) > limits.max_bytes:
        raise ImageTooLargeError(
            f"the picture has {len(data)} bytes and at most {limits.max_bytes} are accepted; "
            "scale it down or save it with stronger compression"
        )
    container = read_container(data)
    _check_size(container, limits)
    try:
        return _upright(_decode(container), container.orientation)
    except (MemoryError, UnreadableImageError):
        raise
    except Exception as error:
        # Pillow's answers to damaged files are many (OSError, SyntaxError, ValueError, IndexError, struct.error,
        # zlib.error ...) and all mean the same thing here. Their texts stay inside.
        raise UnreadableImageError(f"the {container.format} picture is damaged; save it again and resend it") from error


def _check_media_type(media_type: str | None) -> None:
    if media_type is None:
        return
    essence = media_type.partition(";")[0].strip().lower()
    if essence not in ACCEPTED_MEDIA_TYPES:
        # Not echoed: it is the caller's own text, of any length.
        raise UnreadableImageError(
            "the picture is declared as a type that is not accepted; send image/jpeg, image/png, image/webp or "
            "image/gif"
        )


def _check_size(container: Container, limits: ImageLimits) -> None:
    width_px, height_px = container.width_px, container.height_px
    if max(width_px, height_px) > limits.max_side_px or width_px * height_px > limits.max_pixels:
        raise ImageTooLargeError(
            f"the picture has {width_px}×{height_px} pixels; at most {limits.max_pixels / 1e6:g} million pixels and "
            f"{limits.max_side_px} a side are accepted; scale it down"
        )
    if min(width_px, height_px) < limits.min_side_px:
        raise UnreadableImageError(
            f"the picture has only {width_px}×{height_px} pixels; at least {limits.min_side_px} a side are needed"
        )


_OPENERS: Final[dict[ImageFormat, Callable[[io.BytesIO], ImageFile.ImageFile]]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
"""Opened by class, not with ``Image.open``, which would import every other decoder and warn by process-wide limits."""


def _decode(container: Container) -> RgbImage:
    with _OPENERS[container.format](io.BytesIO(container.first_frame)) as file:
        if file.size != (container.width_px, container.height_px):
            raise UnreadableImageError(f"the {container.format} picture is damaged: its sizes contradict each other")
        file.load()
        return np.asarray(_to_srgb(file))


# --- colours --------------------------------------------------------------------------------------------------------


def _to_srgb(image: Image.Image) -> Image.Image:
    """Any mode that the four formats decode to (1, L, LA, I;16, P, PA, RGB, RGBA, CMYK) as RGB."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba)
    elif image.mode in ("1", "L", "P"):
        image = image.convert("RGB")
    converted = _through_profile(image, profile) if profile else None
    return converted or image.convert("RGB")


def _to_8_bit(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """0 … 65535 to the nearest of 0 … 255 (257 · 255 = 65535)."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


_MAX_PROFILE_BYTES = 64 * 2**10
"""Profiles of a display or a camera are a matrix and three curves: 0.5 to 4 kB. Those of presses are tables of
megabytes, whose evaluation a hostile file could make as long as it likes: CMYK is converted without them."""


def _through_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """RGB ``image`` from its embedded profile's colours to sRGB; None where the profile is sRGB, unfit or broken.

    Phones save Display P3 and cameras Adobe RGB: read as sRGB, skin turns pale. A profile that can't be used is no
    reason to refuse a picture whose pixels are fine.
    """
    if image.mode != "RGB" or len(profile) > _MAX_PROFILE_BYTES:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != "RGB " or not source.profile.is_matrix_shaper:
            return None
        if ImageCms.getProfileDescription(source).startswith("sRGB"):
            return None
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


# --- orientation ----------------------------------------------------------------------------------------------------


def _upright(image: RgbImage, orientation: int) -> RgbImage:
    """``image`` turned as EXIF's ``orientation`` (1 … 8) says: where the stored first row and column belong."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)  # rows are columns
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]  # first column belongs right
    if orientation in (3, 4, 7, 8):
        image = image[::-1]  # first row belongs at the bottom
    return np.ascontiguousarray(image)
