"""Prompts to embeddings: T5 for the text stream, CLIP's pooled state for the modulation.

Both are Hugging Face transformers' networks; padding and pooling follow black-forest-labs/flux ``conditioner.py``:
prompts are padded to the full length and padding is attended to (no mask), as the transformer was trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from engine.profile import ClipTextParams, T5Params

CLIP_END_ID = 49_407
"""``<|endoftext|>``: end of prompt and padding alike (openai/clip-vit-large-patch14 ``tokenizer_config.json``)."""

T5_PAD_ID = 0
T5_END_ID = 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TextEmbedding:
    """One prompt: ``txt`` (1, T, context_in_dim) and ``vec`` (1, vec_in_dim)."""

    txt: Tensor
    vec: Tensor

    @property
    def size_bytes(self) -> int:
        """Memory held."""
        return self.txt.nbytes + self.vec.nbytes


@cache
def packaged_tokenizer(name: str) -> Tokenizer:
    """``clip_l`` or ``t5_xxl`` from ``engine/tokenizers``, without padding or truncation."""
    text = (resources.files("engine") / "tokenizers" / name / "tokenizer.json").read_text(encoding="utf-8")
    return Tokenizer.from_str(text)


def padded_ids(tokenizer: Tokenizer, prompt: str, *, length: int, end_id: int, pad_id: int) -> list[int]:
    """Exactly ``length`` token ids: cut so that the end token stays, or padded behind it."""
    ids: list[int] = tokenizer.encode(prompt).ids
    if len(ids) > length:
        ids = [*ids[: length - 1], end_id]
    return ids + [pad_id] * (length - len(ids))


def build_t5(params: T5Params) -> T5EncoderModel:
    """T5 v1.1's encoder on the current default device (use ``torch.device("meta")`` before loading weights)."""
    config = T5Config(
        vocab_size=params.vocab_size,
        d_model=params.d_model,
        d_kv=params.d_kv,
        d_ff=params.d_ff,
        num_layers=params.num_layers,
        num_heads=params.num_heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return T5EncoderModel(config).eval()


def build_clip_text(params: ClipTextParams) -> CLIPTextModel:
    """CLIP's text tower; its activation is OpenAI's quick GELU."""
    config = CLIPTextConfig(
        vocab_size=params.vocab_size,
        hidden_size=params.hidden_size,
        intermediate_size=params.intermediate_size,
        num_hidden_layers=params.num_hidden_layers,
        num_attention_heads=params.num_attention_heads,
        max_position_embeddings=params.max_tokens,
        hidden_act="quick_gelu",
        bos_token_id=CLIP_END_ID - 1,
        eos_token_id=CLIP_END_ID,
        pad_token_id=CLIP_END_ID,
    )
    return CLIPTextModel(config).eval()


class TextEncoder:
    """Both text networks with their tokenizers."""

    def __init__(self, t5: Any, clip: Any, *, t5_params: T5Params, clip_params: ClipTextParams) -> None:
        self.t5 = t5
        self.clip = clip
        self.t5_length = t5_params.max_tokens
        self._clip_length = clip_params.max_tokens
        self._t5_tokenizer = packaged_tokenizer("t5_xxl")
        self._clip_tokenizer = packaged_tokenizer("clip_l")

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """One embedding a prompt, in order. Longer prompts are cut, as the networks' inputs are of fixed length."""
        t5_ids = [
            padded_ids(self._t5_tokenizer, prompt, length=self.t5_length, end_id=T5_END_ID, pad_id=T5_PAD_ID)
            for prompt in prompts
        ]
        clip_ids = [
            padded_ids(self._clip_tokenizer, prompt, length=self._clip_length, end_id=CLIP_END_ID, pad_id=CLIP_END_ID)
            for prompt in prompts
        ]
        txt: Tensor = self.t5(input_ids=torch.tensor(t5_ids, device=self.t5.device)).last_hidden_state
        vec: Tensor = self.clip(input_ids=torch.tensor(clip_ids, device=self.clip.device)).pooler_output
        return [TextEmbedding(txt=txt[i : i + 1], vec=vec[i : i + 1]) for i in range(len(prompts))]
