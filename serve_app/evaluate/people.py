"""Whose pictures are drawn: photos in a folder, one person each or one folder each."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Final

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp"})
REFERENCE_STEM: Final = "reference"
"""A photo of this name is the reference; otherwise the first by name is."""


class PeopleError(Exception):
    """The folder can't be used. The message says what to change."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """One person.

    Attributes:
        name: a plain word, unique: names files and rows.
        reference: the photo that is sent.
        others: further photos of the same person, to compare with; may be empty.
    """

    name: str
    reference: Path
    others: tuple[Path, ...] = ()


def read_people(folder: Path) -> tuple[Person, ...]:
    """``folder/person/photo.jpg``, or ``folder/photo.jpg`` for people with one photo each; in the order of names.

    Raises:
        PeopleError: no folder, no photos, both layouts at once, or two names that are alike.
    """
    if not folder.is_dir():
        raise PeopleError(f"there is no folder {folder}")
    loose = _photos(folder)
    nested = {child.name: photos for child in sorted(folder.iterdir()) if child.is_dir() and (photos := _photos(child))}
    if loose and nested:
        raise PeopleError(f"{folder} holds photos and folders of photos: make it one photo or one folder a person")
    if not loose and not nested:
        raise PeopleError(f"{folder} holds no photos ({', '.join(sorted(SUFFIXES))})")
    people = [Person(name=_plain(photo.stem), reference=photo) for photo in loose]
    people += [_person(name, photos) for name, photos in nested.items()]
    names = [person.name for person in people]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PeopleError(
            f"more than one person is called {twice[0]} (other characters than letters, digits, - and _ don't count)"
        )
    return tuple(people)


def _person(name: str, photos: list[Path]) -> Person:
    named = [photo for photo in photos if photo.stem.lower() == REFERENCE_STEM]
    reference = (named or photos)[0]
    return Person(name=_plain(name), reference=reference, others=tuple(p for p in photos if p != reference))


def _photos(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "person"
