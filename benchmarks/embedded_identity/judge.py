"""The second half: looks at what was drawn with networks that took no part in training."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.embedded_identity.asked import JUDGED_STRENGTH, PHOTOS, STRENGTHS, Asked
from benchmarks.embedded_identity.colour import nearest_backdrop
from benchmarks.embedded_identity.sheets import write_sheets
from benchmarks.embedded_identity.tars import read_tars
from embedded.train.attributes import names_answered, read_classifier
from engine.face.detect import YuNetDetector
from engine.face.identity import DlibIdentity, IdentityVector, area_under_curve


def judge(arguments: argparse.Namespace) -> None:
    """Judge what was drawn; write the results and the sheets."""
    facts = json.loads((arguments.drawn / "drawn.json").read_text())
    files = read_tars(arguments.drawn)
    items = [Asked(**{key: value for key, value in item.items() if key != "name"}) for item in facts.pop("items")]
    identity = DlibIdentity(YuNetDetector())
    classifier, measured = read_classifier(arguments.classifier)
    people = sorted({item.person for item in items})
    sent = {photo: {person: identity.vector(files[f"{photo}-{person}.jpg"]) for person in people} for photo in PHOTOS}
    seen = {photo: {p: v for p, v in vectors.items() if v is not None} for photo, vectors in sent.items()}
    vectors = {item.name: identity.vector(files[item.name]) for item in items}
    said = dict(zip([i.name for i in items], names_answered(classifier, [files[i.name] for i in items]), strict=True))

    def judged(chosen: list[Asked]) -> dict[str, Any]:
        return {
            "pictures": len(chosen),
            "face_found": share(vectors[item.name] is not None for item in chosen),
            **likeness(chosen, vectors, seen[chosen[0].photo]),
            "obeyed": {
                question: share(said[item.name][question] == item.asked[question] for item in chosen)
                for question in chosen[0].asked
            },
            "background_by_colour": share(
                nearest_backdrop(files[item.name]) == item.asked["background"] for item in chosen
            ),
        }

    default = {s: judged([i for i in items if i.series == "default" and i.strength == s]) for s in STRENGTHS}
    snapshot = judged([i for i in items if i.series == "snapshot"])
    guided = {c: judged([i for i in items if i.series == "cfg" and i.cfg == c]) for c in (1.0, 3.0)}
    own = [default[strength]["own_mean"] for strength in STRENGTHS]
    result = {
        "auc": default[JUDGED_STRENGTH]["auc"],
        "is_monotonic": None not in own and all(later < earlier for earlier, later in itertools.pairwise(own)),
        "photos_seen": {photo: len(vectors) for photo, vectors in seen.items()},
        "by_strength": {str(strength): values for strength, values in default.items()},
        "with_snapshots": snapshot,
        "by_cfg_at_guidance_1": {str(cfg): values for cfg, values in guided.items()},
        "classifier_on_unseen_renders": measured["accuracy"],
        "drawing": {key: value for key, value in facts.items() if key != "model"},
        "model_files": {name: file["sha256"] for name, file in facts["model"]["files"].items()},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    arguments.sheets.mkdir(parents=True, exist_ok=True)
    write_sheets(items, files, people, arguments.sheets)


def likeness(
    items: list[Asked], vectors: dict[str, IdentityVector | None], seen: dict[int, IdentityVector]
) -> dict[str, float | None]:
    """How well distance to the references tells the right one. Distances are dlib's: 0.6 is its own threshold.

    None where no face was seen in any picture.
    """
    people = list(seen)
    table = np.stack([seen[person] for person in people])
    own, other, is_first = [], [], []
    for item in items:
        vector = vectors[item.name]
        if vector is None or item.person not in seen:
            continue
        distances = np.linalg.norm(table - vector, axis=1)
        index = people.index(item.person)
        own.append(distances[index])
        other.append(np.delete(distances, index))
        is_first.append(bool((distances[index] <= distances).all()))
    if not own:
        return dict.fromkeys(("auc", "own_mean", "other_mean", "own_is_nearest"))
    same, others = np.asarray(own), np.concatenate(other)
    return {
        "auc": area_under_curve(-same, -others),
        "own_mean": float(same.mean()),
        "other_mean": float(others.mean()),
        "own_is_nearest": float(np.mean(is_first)),
    }


def share(values: Iterable[bool]) -> float:
    """Part of the values that are true."""
    return round(float(np.mean(list(values))), 4)
