"""A small classifier of what pictures show, for the judge of prompt obedience. The model never meets it.

Trained on drawn people with their exact attributes and tried on people it has not seen; the judge reports that score
beside the model's, because no model can be seen to obey more often than the classifier is right.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from embedded import palette
from embedded.scene import POSES
from embedded.train.corpus import Corpus
from embedded.train.world import Clock, World, warm_up_and_cosine

QUESTIONS: dict[str, tuple[str, ...]] = {
    "hair": tuple(palette.HAIR),
    "background": (*palette.BACKDROPS, "a place"),
    "pose": POSES,
    "glasses": ("none", "glasses", "sunglasses"),
}
"""What is asked, and the possible answers."""

UNKNOWN = -1


def answers(attributes: dict[str, Any]) -> dict[str, int]:
    """A picture's right answers as places in :data:`QUESTIONS`; unknown where the picture does not show it."""
    is_hair_hidden = attributes["headwear"] != "none" or attributes["hair_style"] in ("bald", "buzz cut")
    eyewear = attributes["eyewear"]
    named = {
        "hair": None if is_hair_hidden else attributes["hair_color"],
        "background": attributes["backdrop"] or "a place",
        "pose": attributes["pose"],
        "glasses": eyewear if eyewear in ("none", "sunglasses") else "glasses",
    }
    return {key: UNKNOWN if name is None else QUESTIONS[key].index(name) for key, name in named.items()}


class Classifier(nn.Module):
    """Pictures at half size through five strided convolutions; one linear layer a question."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out in (width, 2 * width, 4 * width, 4 * width, 4 * width):
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
            layers += [nn.Conv2d(out, out, 3, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
            channels = out
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({key: nn.Linear(16 * channels, len(names)) for key, names in QUESTIONS.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 256, 256, 3) uint8 to (B, answers) logits by question."""
        pixels = F.avg_pool2d(images.permute(0, 3, 1, 2).float() / 127.5 - 1, 2)
        return self.answer(pixels)

    def answer(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, 128, 128) in [-1, 1] to logits."""
        features = self.trunk(pixels).flatten(1)  # (B, C · 4 · 4)
        return {key: head(features) for key, head in self.heads.items()}


def train_classifier(
    world: World, corpus: Corpus, unseen: Corpus, *, seconds: float, seed: int, max_steps: int | None = None
) -> tuple[Classifier, dict[str, Any]]:
    """A classifier, and how often it is right on unseen people."""
    torch.manual_seed(seed)
    classifier = Classifier().to(world.device)
    adam = torch.optim.AdamW(classifier.parameters(), lr=1e-3, weight_decay=1e-2)
    targets = _targets(corpus, world.device)
    clock, generator, step = Clock(world, seconds, max_steps=max_steps), world.generator(seed), 0
    while (progress := clock.progress(step)) < 1.0:
        rows = torch.randint(len(corpus), (256,), generator=generator, device=world.device)
        pixels = F.avg_pool2d(corpus.images[rows].permute(0, 3, 1, 2).float() / 127.5 - 1, 2)
        if step % 2:  # drawn pictures are softer than rendered ones
            pixels = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2.0, mode="bilinear")
        pixels = pixels + 0.03 * torch.randn(pixels.shape, generator=generator, device=world.device)
        with world.autocast():
            logits = classifier.answer(pixels)
        losses = [F.cross_entropy(logits[key].float(), targets[key][rows], ignore_index=UNKNOWN) for key in QUESTIONS]
        torch.stack(losses).sum().backward()
        adam.param_groups[0]["lr"] = 1e-3 * warm_up_and_cosine(step, progress, warm_up_steps=50)
        adam.step()
        adam.zero_grad(set_to_none=True)
        step += 1
    classifier.eval()
    right = _targets(unseen, world.device)
    said = answered(classifier, unseen.images)
    accuracy = {
        key: float((said[key][right[key] != UNKNOWN] == right[key][right[key] != UNKNOWN]).float().mean())
        for key in QUESTIONS
    }
    return classifier, {"steps": step, "pictures": len(corpus), "unseen_pictures": len(unseen), "accuracy": accuracy}


@torch.no_grad()
def answered(classifier: Classifier, images: Tensor, *, batch: int = 128) -> dict[str, Tensor]:
    """The likeliest answers for (N, 256, 256, 3) uint8, (N,) by question."""
    parts = [{key: row.argmax(1) for key, row in classifier(part).items()} for part in images.split(batch)]
    return {key: torch.cat([part[key] for part in parts]) for key in QUESTIONS}


def names_answered(classifier: Classifier, images: Sequence[npt.NDArray[np.uint8]]) -> list[dict[str, str]]:
    """The likeliest answers in words, one dictionary a picture."""
    said = answered(classifier, torch.from_numpy(np.stack(images)))
    return [{key: QUESTIONS[key][int(said[key][i])] for key in QUESTIONS} for i in range(len(images))]


def write_classifier(classifier: Classifier, measured: dict[str, Any], path: Path) -> None:
    """Weights in half precision, with what was measured in the header."""
    tensors = {key: value.detach().cpu().half() for key, value in classifier.state_dict().items()}
    save_file(tensors, str(path), metadata={"measured": json.dumps(measured)})
    path.chmod(0o644)


def read_classifier(path: Path) -> tuple[Classifier, dict[str, Any]]:
    """The inverse of :func:`write_classifier`."""
    classifier = Classifier()
    classifier.load_state_dict({key: value.float() for key, value in load_file(str(path)).items()})
    with safe_open(str(path), framework="pt") as file:
        measured: dict[str, Any] = json.loads(file.metadata()["measured"])
    return classifier.eval(), measured


def _targets(corpus: Corpus, device: torch.device) -> dict[str, Tensor]:
    rows = [answers(record["attributes"]) for record in corpus.records]
    return {key: torch.tensor([row[key] for row in rows], device=device) for key in QUESTIONS}
