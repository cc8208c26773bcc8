"""Captions as token ids, made once; some with words that mean nothing here, so that the model reads past such words."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import torch
from torch import Tensor

from engine.model.text import CLIP_END_ID, T5_END_ID, T5_PAD_ID, packaged_tokenizer
from engine.profile import ModelProfile

STRANGE_SHARE = 0.3
"""Captions that get strange words. A visitor's prompt has words that no caption ever held."""

MAX_STRANGE_WORDS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """``t5`` (N, C, T) and ``clip`` (N, C, 77) int32: C captions for each of N pictures."""

    t5: Tensor
    clip: Tensor

    def to(self, device: torch.device) -> Tokens:
        """The same on another device."""
        return Tokens(t5=self.t5.to(device), clip=self.clip.to(device))

    def pick(self, rows: Tensor, is_empty: Tensor, empty: Tokens, generator: torch.Generator) -> Tokens:
        """One random caption for each row, (B, T) and (B, 77); the empty prompt where ``is_empty``."""
        which = torch.randint(self.t5.shape[1], rows.shape, generator=generator, device=rows.device)
        blank = is_empty[:, None]
        return Tokens(
            t5=torch.where(blank, empty.t5[0], self.t5[rows, which]),
            clip=torch.where(blank, empty.clip[0], self.clip[rows, which]),
        )


def tokenise(captions: list[list[str]], profile: ModelProfile, *, seed: int) -> Tokens:
    """Token ids of captions, as :class:`engine.model.text.TextEncoder` makes them from prompts."""
    known = set(re.findall(r"[a-z]+", " ".join(text for texts in captions for text in texts).lower()))
    strange = [word for word in _words() if word not in known]
    rng = np.random.default_rng([seed, 7])
    texts = [_with_strange_words(text, strange, rng) for group in captions for text in group]
    ids = token_ids(texts, profile)
    shape = (len(captions), len(captions[0]))
    return Tokens(t5=ids.t5.unflatten(0, shape), clip=ids.clip.unflatten(0, shape))


def token_ids(texts: list[str], profile: ModelProfile) -> Tokens:
    """``t5`` (N, T) and ``clip`` (N, 77) of prompts."""
    return Tokens(
        t5=_padded("t5_xxl", texts, length=profile.t5.max_tokens, end_id=T5_END_ID, pad_id=T5_PAD_ID),
        clip=_padded("clip_l", texts, length=profile.clip.max_tokens, end_id=CLIP_END_ID, pad_id=CLIP_END_ID),
    )


def _padded(name: str, texts: list[str], *, length: int, end_id: int, pad_id: int) -> Tensor:
    table = np.full((len(texts), length), pad_id, dtype=np.int32)
    for row, encoding in enumerate(packaged_tokenizer(name).encode_batch(texts)):
        ids = encoding.ids
        if len(ids) > length:
            ids = [*ids[: length - 1], end_id]
        table[row, : len(ids)] = ids
    return torch.from_numpy(table)


def _words() -> list[str]:
    """Whole English-looking words of T5's vocabulary, sorted."""
    return sorted(token[1:] for token in packaged_tokenizer("t5_xxl").get_vocab() if re.fullmatch(r"▁[a-z]{3,}", token))


def _with_strange_words(text: str, strange: list[str], rng: np.random.Generator) -> str:
    if rng.random() >= STRANGE_SHARE:
        return text
    words = text.split(" ")
    for _ in range(int(rng.integers(1, MAX_STRANGE_WORDS + 1))):
        words.insert(int(rng.integers(len(words) + 1)), strange[int(rng.integers(len(strange)))])
    return " ".join(words)
