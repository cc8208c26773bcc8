"""An evaluation as one page for people, with every picture beside the photos it should be like."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageOps

from engine.face.identity import SAME_PERSON_SIMILARITY
from serve_app import report_page as page
from serve_app.evaluate.histogram import Row, histograms
from serve_app.evaluate.measure import Likeness
from serve_app.evaluate.report import JUDGE, Evaluation, comparison, difference_in_words

THUMBNAIL_PX: Final = 128
MAX_SHEET_PICTURES: Final = 600
"""About 4 MB of page; further pictures are in their folder all the same."""

_OWN, _PHOTOS, _OTHER = "#39678c", "#5f9e54", "#c44e52"


def render(evaluation: Evaluation, numbers: Mapping[str, Any], folder: Path) -> str:
    """The whole page."""
    head, *rows = comparison(numbers)
    parts = [
        page.paragraph(_introduction(evaluation), is_note=True),
        page.table(head, rows),
        *(page.paragraph(difference_in_words(name, value)) for name, value in numbers["differences"].items()),
        page.heading("Similarity"),
        _similarities(evaluation),
        page.heading("By prompt"),
        page.paragraph("Median similarity to the own reference, and the share of pictures with a face.", is_note=True),
        _by_prompt(evaluation),
        page.heading("By person"),
        _by_person(evaluation),
        *_failures(numbers),
        page.heading("Pictures"),
        *_sheet(evaluation, folder),
        page.heading("How it was run"),
        page.code(evaluation.command),
    ]
    return page.page("How well is the person kept?", parts)


def _introduction(evaluation: Evaluation) -> str:
    return (
        f"{len(evaluation.people)} people, {len(evaluation.prompts)} prompts. Judge: {JUDGE}. Similarity goes from 0 "
        "to 1, the same picture; other photos of the same person have 0.6 to 0.85, other people 0.25 to 0.5, and "
        f"{SAME_PERSON_SIMILARITY:g} (dashed) parts them. This page holds faces: keep it as you keep the photos."
    )


def _similarities(evaluation: Evaluation) -> str:
    rows: list[Row] = []
    for endpoint in evaluation.endpoints:
        pictures = evaluation.of(endpoint)
        own = [one.own for one in pictures if one.own is not None]
        others = [value for one in pictures for value in one.others]
        photos = [value for one in pictures for value in one.photos]
        rows.append(Row(label=f"{endpoint.name}: own reference", values=own, colour=_OWN))
        rows.append(Row(label=f"{endpoint.name}: own other photos", values=photos, colour=_PHOTOS))
        rows.append(Row(label=f"{endpoint.name}: other references", values=others, colour=_OTHER))
    rows.append(Row(label="photos: same person", values=evaluation.photos["same"], colour=_PHOTOS))
    rows.append(Row(label="photos: other people", values=evaluation.photos["other"], colour=_OTHER))
    return histograms(rows, threshold=SAME_PERSON_SIMILARITY)


def _by_prompt(evaluation: Evaluation) -> str:
    rows = [
        (
            f"{index + 1}. {prompt}",
            *(_cell([one for one in evaluation.of(e) if one.prompt_index == index]) for e in evaluation.endpoints),
        )
        for index, prompt in enumerate(evaluation.prompts)
    ]
    return page.table(("", *(endpoint.name for endpoint in evaluation.endpoints)), rows)


def _by_person(evaluation: Evaluation) -> str:
    rows = [
        (
            person.name,
            *(_cell([one for one in evaluation.of(e) if one.person == person.name]) for e in evaluation.endpoints),
        )
        for person in evaluation.people
    ]
    return page.table(("", *(endpoint.name for endpoint in evaluation.endpoints)), rows)


def _cell(pictures: Sequence[Likeness]) -> str:
    own = [one.own for one in pictures if one.own is not None]
    middle = f"{statistics.median(own):.3f}" if own else "–"
    return f"{middle}, {len(own)} of {len(pictures)}"


def _failures(numbers: Mapping[str, Any]) -> list[str]:
    rows = [
        (name, error, count) for name, side in numbers["endpoints"].items() for error, count in side["errors"].items()
    ]
    return [page.heading("Without a picture"), page.table(("endpoint", "error", "count"), rows)] if rows else []


def _sheet(evaluation: Evaluation, folder: Path) -> list[str]:
    """For each person the photos, then the pictures of every endpoint, each with its similarity."""
    parts: list[str] = []
    num_left = MAX_SHEET_PICTURES
    for person in evaluation.people:
        jobs = [job for job in evaluation.plan if job.person == person and job.path in evaluation.likenesses]
        if num_left < len(jobs):
            parts.append(page.paragraph(f"{person.name} and who follows are left out here; see the folder."))
            break
        num_left -= len(jobs)
        photos = [_figure(person.reference, "reference"), *(_figure(p, "other photo") for p in person.others[:4])]
        parts.append(f"<h3>{page.text(person.name)}</h3><p>{' '.join(photos)}</p>")
        for endpoint in evaluation.endpoints:
            drawn = [job for job in jobs if job.endpoint.name == endpoint.name]
            figures = [_figure(folder / job.path, _caption(evaluation.likenesses[job.path])) for job in drawn]
            parts.append(f"<p><b>{page.text(endpoint.name)}</b><br>{' '.join(figures)}</p>")
    return parts


def _caption(likeness: Likeness) -> str:
    words = (
        "no face"
        if likeness.own is None
        else f"{likeness.own:.3f}" + ", another is nearer" * (likeness.is_nearest is False)
    )
    return f"prompt {likeness.prompt_index + 1}: {words}"


def _figure(path: Path, caption: str) -> str:
    picture = page.picture(thumbnail(path), "image/jpeg", alt=caption)
    return f"<figure>{picture}<figcaption>{page.text(caption)}</figcaption></figure>"


def thumbnail(path: Path) -> bytes:
    """A small JPEG of a picture file, upright and without metadata."""
    with Image.open(path) as file:
        small = ImageOps.exif_transpose(file).convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
