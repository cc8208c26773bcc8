"""What is asked of the model: so many prompts for every person, whose answers a judge can read off the pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from embedded import palette

STRENGTHS = (0.0, 0.4, 0.8, 1.0)
JUDGED_STRENGTH = 0.8
NUM_PROMPTS = 4
PHOTOS = ("portrait", "snapshot")
"""What is sent of each person: a portrait as one would choose for it, or one of the views that models train on."""
POSES = {"front": "facing the camera", "left": "looking to the left", "right": "looking to the right"}

PHOTO_PROMPTS = (
    "A professional AI influencer portrait",
    "A portrait photo, smiling, on a beach, bright daylight",
    "A studio portrait, wearing a black turtleneck, gray background",
    "Headshot, wearing round glasses, blue background",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """One picture that is drawn.

    Attributes:
        series: ``default`` at the product's defaults, ``snapshot`` the same with that as the photo, ``cfg`` for true
            guidance with distilled guidance off.
        person: identity of the reference.
        asked: right answers to the classifier's questions.
    """

    series: str
    person: int
    prompt: str
    asked: dict[str, str]
    strength: float
    cfg: float
    guidance: float
    seed: int

    @property
    def photo(self) -> str:
        """Which of :data:`PHOTOS` is sent."""
        return "snapshot" if self.series == "snapshot" else "portrait"

    @property
    def name(self) -> str:
        """File name inside the tar files."""
        return f"{self.series}-{self.person}-{self.seed}-s{self.strength:.1f}-c{self.cfg:.0f}.jpg"


def prompts_for(person: int) -> list[tuple[str, dict[str, str]]]:
    """Four prompts with hair colour, background, pose side and glasses, different for every person."""
    rng = np.random.default_rng([person, 77])
    made = []
    for index in range(NUM_PROMPTS):
        hair = str(rng.choice(list(palette.HAIR)))
        background = str(rng.choice(list(palette.BACKDROPS)))
        pose = str(rng.choice(list(POSES)))
        style = str(rng.choice(["short {} hair", "long {} hair", "curly {} hair", "{} hair"]))
        glasses = "glasses" if index % 2 else "none"
        parts = ["A professional AI influencer portrait", style.format(hair)]
        parts += ["wearing round glasses"] if glasses == "glasses" else []
        parts += [POSES[pose], f"{background} background", "soft studio light"]
        asked = {"hair": hair, "background": background, "pose": pose, "glasses": glasses}
        made.append((", ".join(parts), asked))
    return made


def plan(people: Sequence[int]) -> list[Asked]:
    """Every picture of the judgement."""
    asked = []
    for person in people:
        for index, (prompt, answers) in enumerate(prompts_for(person)):
            seed = 1000 * index + person % 1000
            common: dict[str, Any] = {"person": person, "prompt": prompt, "asked": answers, "seed": seed}
            for strength in STRENGTHS:
                asked.append(Asked(series="default", strength=strength, cfg=1.0, guidance=3.5, **common))
            asked.append(Asked(series="snapshot", strength=JUDGED_STRENGTH, cfg=1.0, guidance=3.5, **common))
            if index < 2:
                for cfg in (1.0, 3.0):
                    asked.append(Asked(series="cfg", strength=JUDGED_STRENGTH, cfg=cfg, guidance=1.0, **common))
    return asked
