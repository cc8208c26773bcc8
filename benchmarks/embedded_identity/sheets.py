"""Pictures side by side, for people to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.embedded_identity.asked import JUDGED_STRENGTH, PHOTO_PROMPTS, Asked
from engine.request import RgbImage


def write_sheets(items: list[Asked], files: dict[str, RgbImage], people: list[int], folder: Path) -> None:
    """People by prompts, people by strengths, photos: JPEG pictures to look at, never cut to the best."""
    first = people[:8]
    default = [item for item in items if item.series == "default"]

    def row(person: int, chosen: list[Asked]) -> RgbImage:
        shown = [files[f"portrait-{person}.jpg"], *(files[item.name] for item in chosen if item.person == person)]
        return np.concatenate(shown, axis=1)

    prompts = [item for item in default if item.strength == JUDGED_STRENGTH]
    save(np.concatenate([row(person, prompts) for person in first]), folder / "prompts.jpg")
    seeds = {person: min(item.seed for item in default if item.person == person) for person in people}
    strengths = [item for item in default if item.seed == seeds[item.person]]
    save(np.concatenate([row(person, strengths) for person in first]), folder / "strengths.jpg")
    photos = sorted({name.rsplit("-", 1)[0] for name in files if name.startswith("photo-") and name[-6] == "-"})
    if photos:
        rows = []
        for photo in photos:
            crop = np.asarray(Image.fromarray(files[f"{photo}.jpg"]).resize((256, 256)))
            rows.append(np.concatenate([crop, *(files[f"{photo}-{i}.jpg"] for i in range(len(PHOTO_PROMPTS)))], axis=1))
        save(np.concatenate(rows), folder / "photos.jpg")


def save(picture: RgbImage, path: Path) -> None:
    """As JPEG at half size: sheets are committed."""
    image = Image.fromarray(picture)
    image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS).save(path, quality=85)
