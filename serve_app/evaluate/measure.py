"""Numbers of identity: how like each picture is to its own reference, to other people's, to other photos of its person.

Similarities are those of :func:`engine.face.identity.similarity`. What they are worth shows in the same run: pictures
are compared with the wrong people too, and real photos with one another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from engine.face.identity import SAME_PERSON_SIMILARITY, IdentityVector, area_under_curve, similarity

POINTS = (5, 25, 50, 75, 95)
NUM_RESAMPLES = 2000
"""For an interval of 95 %: its ends move by less than 2 % of its width between runs."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Likeness:
    """One picture against the photos.

    Attributes:
        endpoint, person, prompt_index, seed: which picture.
        is_face_found: whether a face is found in it; without one the rest is empty.
        own: similarity to its own reference.
        others: to every other person's reference.
        photos: to other photos of its person.
        is_nearest: whether its own reference is the nearest of all.
    """

    endpoint: str
    person: str
    prompt_index: int
    seed: int
    is_face_found: bool
    own: float | None = None
    others: tuple[float, ...] = ()
    photos: tuple[float, ...] = ()
    is_nearest: bool | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Album:
    """The photos as vectors, by person."""

    references: Mapping[str, IdentityVector]
    others: Mapping[str, Sequence[IdentityVector]]


def compare(
    album: Album, vector: IdentityVector | None, *, endpoint: str, person: str, prompt_index: int, seed: int
) -> Likeness:
    """One picture, seen as ``vector``, against all photos."""
    which: dict[str, Any] = {"endpoint": endpoint, "person": person, "prompt_index": prompt_index, "seed": seed}
    if vector is None:
        return Likeness(**which, is_face_found=False)
    own = similarity(album.references[person], vector)
    others = tuple(similarity(photo, vector) for name, photo in album.references.items() if name != person)
    return Likeness(
        **which,
        is_face_found=True,
        own=own,
        others=others,
        photos=tuple(similarity(photo, vector) for photo in album.others.get(person, ())),
        is_nearest=own > max(others) if others else None,
    )


def between_photos(album: Album) -> dict[str, list[float]]:
    """Real photos alone: references against other photos of the same person, and against other people's references."""
    names = list(album.references)
    same = [similarity(album.references[name], photo) for name in names for photo in album.others.get(name, ())]
    other = [
        similarity(album.references[one], album.references[two])
        for place, one in enumerate(names)
        for two in names[place + 1 :]
    ]
    return {"same": same, "other": other}


def summarise(likenesses: Sequence[Likeness]) -> dict[str, Any]:
    """One endpoint's numbers."""
    found = [one for one in likenesses if one.is_face_found]
    own = [one.own for one in found if one.own is not None]
    others = [value for one in found for value in one.others]
    nearest = [one.is_nearest for one in found if one.is_nearest is not None]
    return {
        "num_pictures": len(likenesses),
        "share_with_face": _share(len(found), len(likenesses)),
        "own": distribution(own),
        "other": distribution(others),
        "photos": distribution(value for one in found for value in one.photos),
        "share_same_person": _share(sum(value >= SAME_PERSON_SIMILARITY for value in own), len(own)),
        "auc": round(area_under_curve(np.array(own), np.array(others)), 4) if own and others else None,
        "share_own_nearest": _share(sum(nearest), len(nearest)),
    }


def distribution(values: Iterable[float]) -> dict[str, float] | None:
    """Count, mean and percentiles; None of nothing."""
    array = np.fromiter(values, dtype=np.float64)
    if not array.size:
        return None
    points = {f"p{point}": round(float(np.percentile(array, point)), 4) for point in POINTS}
    return {"count": int(array.size), "mean": round(float(array.mean()), 4), **points}


def paired_difference(first: Sequence[Likeness], second: Sequence[Likeness], *, seed: int = 0) -> dict[str, Any] | None:
    """How much nearer to its reference the second endpoint's picture is than the first's, for the same request.

    Returns mean and an interval of 95 %, bootstrapped over people (pictures of one person are not independent); None
    where no picture of both shows a face.
    """
    ours = {(one.person, one.prompt_index, one.seed): one.own for one in first}
    by_person: dict[str, list[float]] = {}
    for two in second:
        own = ours.get((two.person, two.prompt_index, two.seed))
        if own is not None and two.own is not None:
            by_person.setdefault(two.person, []).append(two.own - own)
    if not by_person:
        return None
    sums = np.array([sum(values) for values in by_person.values()])
    counts = np.array([len(values) for values in by_person.values()])
    picks = np.random.default_rng(seed).integers(len(sums), size=(NUM_RESAMPLES, len(sums)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return {
        "num_pairs": int(counts.sum()),
        "num_people": len(sums),
        "mean": round(float(sums.sum() / counts.sum()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
