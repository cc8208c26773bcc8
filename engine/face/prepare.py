"""The face stage's one question: which square of this picture stands for the person?"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Literal

from engine.errors import FaceNotFoundError
from engine.face.crop import square_crop, whole_picture
from engine.face.decode import ImageLimits, decode_image
from engine.face.detect import FaceBox, FaceDetector
from engine.request import RgbImage

FacePolicy = Literal["prefer", "require", "ignore"]
"""``prefer`` crops the face and falls back to the whole picture with a warning, ``require`` makes that an error,
``ignore`` takes the whole picture without looking for a face."""

CLIP_SIZE_PX = 224
"""Input side of CLIP ViT-L/14, which the adapter's embedding comes from."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PreparedFace:
    """What is left of a reference picture.

    Attributes:
        crop: ``(crop_size_px, crop_size_px, 3)`` sRGB, ready for the encoder.
        box: the face that was cropped, in pixels of the upright picture; None where the whole picture is used.
        warning: one ASCII sentence for the caller (it travels in a header), or None.
        image_width_px, image_height_px: size of the upright picture.
        key: content hash of the crop; equal keys mean equal embeddings.
    """

    crop: RgbImage
    box: FaceBox | None
    warning: str | None
    image_width_px: int
    image_height_px: int
    key: str


class FacePreparer:
    """Decodes, detects, chooses and crops. May be called from several threads at once, as its detector may.

    Args:
        detector: finds faces; how sure it must be is its own setting.
        limits: of the pictures that are accepted.
        margin: around the face, each side, as a fraction of its longer side.
        crop_size_px: side of the crop.
    """

    def __init__(
        self,
        detector: FaceDetector,
        *,
        limits: ImageLimits | None = None,
        margin: float = 0.35,
        crop_size_px: int = CLIP_SIZE_PX,
    ) -> None:
        if margin < 0.0 or crop_size_px < 1:
            raise ValueError(f"margin must be 0 or more and crop_size_px positive, got {margin} and {crop_size_px}")
        self._detector = detector
        self._limits = limits or ImageLimits()
        self._margin = margin
        self._crop_size_px = crop_size_px

    def prepare(self, data: bytes, *, media_type: str | None, policy: FacePolicy) -> PreparedFace:
        """Make the crop of a reference picture. The largest face is taken where there are several.

        Args:
            data: the picture's file.
            media_type: as declared by the caller, or None.
            policy: whether a face is looked for, and what happens where there is none.

        Raises:
            UnreadableImageError, ImageTooLargeError: see :func:`engine.face.decode.decode_image`.
            FaceNotFoundError: ``policy`` is ``require`` and no face was found.
        """
        image = decode_image(data, media_type=media_type, limits=self._limits)
        faces = [] if policy == "ignore" else self._detector.detect(image)
        if not faces and policy == "require":
            raise FaceNotFoundError(
                "no face was found in the picture; send a photo that shows one face upright, clearly and not too "
                "small, or set face_policy to prefer or ignore to use the whole picture"
            )
        box = faces[0] if faces else None
        if box is None:
            crop = whole_picture(image, size_px=self._crop_size_px)
        else:
            crop = square_crop(image, box, margin=self._margin, size_px=self._crop_size_px)
        return PreparedFace(
            crop=crop,
            box=box,
            warning=_warning(len(faces), policy),
            image_width_px=image.shape[1],
            image_height_px=image.shape[0],
            key=_key(crop),
        )


def _warning(num_faces: int, policy: FacePolicy) -> str | None:
    if policy == "ignore" or num_faces == 1:
        return None
    if num_faces == 0:
        return (
            "no face was found in the reference picture, so the whole picture was used; "
            "a photo that shows one face upright and clearly keeps the person better"
        )
    return f"{num_faces} faces were found in the reference picture and the largest was used; crop the photo to choose"


def _key(crop: RgbImage) -> str:
    """Shape and pixels, nothing else: the embedding depends on them alone, however the crop came about."""
    return hashlib.sha256(repr(crop.shape).encode() + crop.tobytes()).hexdigest()
