"""Judges pictures of known people with the service's face networks, which took no part in making them.

    python -m embedded.judge --data DIR [--pictures 400]

Needs the extra `identity`. Reports how often the detector finds a face, and how well the distance between identity
vectors tells "same person" from "another person" (area under the ROC curve over all pairs).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from embedded.dataset import Views
from engine.face.detect import YuNetDetector
from engine.face.identity import DlibIdentity, area_under_curve


def _is_reference(shown: dict[str, Any]) -> bool:
    """Whether a view is such as people send as their reference: from the front, face free, plainly lit."""
    covered = shown["eyewear"] != "none" or shown["headwear"] not in ("none", "headband")
    return shown["pose"] == "front" and not covered and shown["light"] not in ("neon light", "cool blue light")


def judge(views: Views, num_pictures: int) -> dict[str, Any]:
    """The report over the first pictures of a data set."""
    tool = DlibIdentity(YuNetDetector())
    count = min(num_pictures, len(views))
    found = {index: vector for index in range(count) if (vector := tool.vector(views.picture(index))) is not None}
    rows = list(found)
    stacked, owner = np.stack(list(found.values())), np.asarray([views.records[row]["identity"] for row in rows])
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
        "identities": len(set(owner.tolist())),
        "face_found": len(found) / count,
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
            for i in range(count)
            if i not in found
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=400)
    arguments = parser.parse_args()
    report = judge(Views.load(arguments.data), arguments.pictures)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
