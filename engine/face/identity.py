"""Who is in a picture: a vector of its face from a face-recognition network, and how alike two vectors are.

The network took no part in making pictures: nothing here was trained with it or is conditioned on it, so it judges from
outside. It is optional, ``pip install 'likeness[identity]'``, and imported when first made.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import threading
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from engine.errors import ModelLoadError
from engine.face.detect import FaceBox, FaceDetector
from engine.request import RgbImage

IdentityVector = npt.NDArray[np.float32]
"""A face as a point, ``(128,)``: near each other where the person is the same, whatever the pose and the light."""

SAME_PERSON_DISTANCE: Final = 0.6
"""Euclidean distance below which dlib calls two faces the same person: 99.38 % right on Labeled Faces in the Wild
(dlib ``examples/dnn_face_recognition_ex.cpp``)."""

SAME_PERSON_SIMILARITY: Final = 0.5
""":data:`SAME_PERSON_DISTANCE` as a similarity. Measured on 400 photos of 40 people (ORL), all 79,800 pairs: every pair
of one person is above it, and 2.2 % of the others."""


class IdentityModel(Protocol):
    """From pictures to identity vectors. May be called from several threads at once."""

    def vector(self, image: RgbImage) -> IdentityVector | None:
        """The largest face of ``image`` (``(H, W, 3)`` sRGB, any size). None where no face is found."""
        ...


def similarity(first: IdentityVector, second: IdentityVector) -> float:
    """How alike two faces are, 0 … 1: one minus their distance in units of twice :data:`SAME_PERSON_DISTANCE`.

    ===================================  ===========  ==============================================================
    two pictures                         similarity   measured
    ===================================  ===========  ==============================================================
    the same one                         1.00
    one photo in two dresses             0.82 - 0.95  JPEG of quality 90 and 30, half the size, mirrored, cropped
    two photos of one person             0.74         median over ORL; 0.61 to 0.85 from 5th to 95th percentile
    (the threshold)                      0.50         see :data:`SAME_PERSON_SIMILARITY`
    photos of two people                 0.37         median over ORL; 0.26 to 0.48 from 5th to 95th percentile
    ===================================  ===========  ==============================================================

    It is no probability and no percentage of a face. Pictures of one style (drawings by one model, say) lie nearer to
    each other than photos do, whoever they show: compare with what other people's references score.
    """
    distance = float(np.linalg.norm(first - second))
    return max(0.0, 1.0 - distance * (1.0 - SAME_PERSON_SIMILARITY) / SAME_PERSON_DISTANCE)


def area_under_curve(same: npt.NDArray[np.floating[Any]], other: npt.NDArray[np.floating[Any]]) -> float:
    """Chance that a similarity of ``same`` is above one of ``other``, ties by half: 0.5 is guessing, 1 is certainty.

    The area under the ROC curve (Mann and Whitney 1947). Neither may be empty; shapes don't matter.
    """
    if not same.size or not other.size:
        raise ValueError("an area under the curve needs similarities of both kinds")
    order = np.sort(other, axis=None)
    below, not_above = (np.searchsorted(order, same, side=side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * order.size))


MODELS_VERSION: Final = "0.3.0"
"""Of ``face-recognition-models``: other files would give other vectors, for which the landmarks above don't hold."""

_POINTS_FILE: Final = "shape_predictor_5_face_landmarks.dat"
_VECTOR_FILE: Final = "dlib_face_recognition_resnet_model_v1.dat"

_BOX_SIDE, _BOX_CENTRE = 0.9, 0.56
"""dlib's own face box, which the points were trained on, in terms of YuNet's: its side as a share of the mean side, its
centre as a share of the height. Medians over the 394 ORL photos with both; 0.85 to 0.95 and 0.5 to 0.58 do as well."""


class DlibIdentity:
    """dlib's ResNet (King 2017; 29 convolutions, 128 numbers) on faces turned upright by its five-point predictor.

    Faces are found by ``detector``, not by dlib: with YuNet's boxes, 400 of 400 ORL faces are found and the area under
    the curve is 0.99996; with dlib's HOG detector, 394 and 0.9992. A face takes about 0.1 s of one core, and the
    interpreter lock is held meanwhile.

    Args:
        detector: finds faces, largest first.

    Raises:
        ModelLoadError: dlib or the networks' package is missing, or another release.
    """

    def __init__(self, detector: FaceDetector) -> None:
        dlib, folder = _load_dlib(), _models_folder()
        self._detector = detector
        self._rectangle = dlib.rectangle
        self._points = dlib.shape_predictor(str(folder / _POINTS_FILE))
        self._network = dlib.face_recognition_model_v1(str(folder / _VECTOR_FILE))
        self._lock = threading.Lock()  # a network keeps its last pass in itself

    def vector(self, image: RgbImage) -> IdentityVector | None:
        """See :meth:`IdentityModel.vector`."""
        faces = self._detector.detect(image)
        if not faces:
            return None
        pixels = np.ascontiguousarray(image)
        with self._lock:
            points = self._points(pixels, self._rectangle(*_dlib_box(faces[0])))
            return np.asarray(self._network.compute_face_descriptor(pixels, points), dtype=np.float32)


def _dlib_box(face: FaceBox) -> tuple[int, int, int, int]:
    """Left, top, right, bottom; may reach beyond the picture."""
    half = _BOX_SIDE * (face.width_px + face.height_px) / 4
    x, y = face.left_px + face.width_px / 2, face.top_px + face.height_px * _BOX_CENTRE
    return round(x - half), round(y - half), round(x + half), round(y + half)


def _load_dlib() -> Any:
    try:
        import dlib
    except ImportError as error:
        raise ModelLoadError("face identity needs dlib: pip install 'likeness[identity]'") from error
    return dlib


def _models_folder() -> Path:
    """Found without importing the package: it needs ``pkg_resources``, which setuptools no longer has."""
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise ModelLoadError(
            f"face identity needs face-recognition-models=={MODELS_VERSION}: pip install 'likeness[identity]'"
        )
    installed = importlib.metadata.version("face-recognition-models")
    if installed != MODELS_VERSION:
        raise ModelLoadError(f"face identity needs face-recognition-models=={MODELS_VERSION}, not {installed}")
    return Path(spec.submodule_search_locations[0]) / "models"
