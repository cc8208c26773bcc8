"""Where each parameter of a network lies in its checkpoint file. Tables and renames, no tensors.

A :class:`KeyMap` answers for the *module's* key which *file* key holds it; every other key of the file must be named
as unused, or the file is of another model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from engine.profile import AutoencoderParams


def _same(key: str) -> str:
    return key


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KeyMap:
    """How one network's keys are called in its file.

    Attributes:
        file_key: the file's key for a module's key.
        prefixes: prefixes under which the whole network may lie in the file, the plain form first.
        unused: patterns of file keys that are known and not needed.
    """

    file_key: Callable[[str], str] = _same
    prefixes: tuple[str, ...] = ("",)
    unused: tuple[re.Pattern[str], ...] = ()

    def is_unused(self, file_key: str) -> bool:
        """Whether a key of the file is known and not needed."""
        return any(pattern.fullmatch(file_key) for pattern in self.unused)


FLUX = KeyMap(prefixes=("", "model.diffusion_model."))
"""BFL's own keys; single-file checkpoints of other tools put them under a prefix."""

IP_ADAPTER = KeyMap()
"""XLabs' own keys."""


def _t5_file_key(module_key: str) -> str:
    return "shared.weight" if module_key == "encoder.embed_tokens.weight" else module_key


T5 = KeyMap(file_key=_t5_file_key, unused=(re.compile(r"encoder\.embed_tokens\.weight"),))
"""Hugging Face's encoder keys; token embeddings are stored once or twice, and are one tensor."""


def _clip_text_file_key(module_key: str) -> str:
    # transformers 5 dropped the prefix from the module while the files keep it; older releases have it in both.
    return module_key if module_key.startswith("text_model.") else f"text_model.{module_key}"


CLIP_TEXT = KeyMap(
    file_key=_clip_text_file_key,
    unused=tuple(
        map(re.compile, (r"text_model\.embeddings\.position_ids", r"text_projection\.weight", r"logit_scale"))
    ),
)
"""Hugging Face's text keys, alone or with the projection that Flux does not use."""

CLIP_VISION = KeyMap(
    unused=tuple(
        map(
            re.compile,
            (r"vision_model\.embeddings\.position_ids", r"text_model\..*", r"text_projection\.weight", r"logit_scale"),
        )
    ),
)
"""Hugging Face's vision keys and ``visual_projection``, usually inside a whole CLIP file."""

_AUTOENCODER_RENAMES = (
    # diffusers' module                   BFL's file
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.group_norm\.", "mid.attn_1.norm."),
    (r"mid_block\.attentions\.0\.to_q\.", "mid.attn_1.q."),
    (r"mid_block\.attentions\.0\.to_k\.", "mid.attn_1.k."),
    (r"mid_block\.attentions\.0\.to_v\.", "mid.attn_1.v."),
    (r"mid_block\.attentions\.0\.to_out\.0\.", "mid.attn_1.proj_out."),
    (r"down_blocks\.(\d+)\.resnets\.(\d+)\.", r"down.\1.block.\2."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)\.", r"up.\1.block.\2."),
    (r"up_blocks\.(\d+)\.upsamplers\.0\.", r"up.\1.upsample."),
    (r"conv_shortcut\.", "nin_shortcut."),
    (r"conv_norm_out\.", "norm_out."),
)


def autoencoder(params: AutoencoderParams, *, is_encoder_used: bool = False) -> KeyMap:
    """BFL's autoencoder keys for diffusers' ``AutoencoderKL``.

    BFL counts the decoder's levels from the finest, diffusers from the coarsest. BFL's attention projections are
    1×1 convolutions, diffusers' are linear: the same numbers in another shape, which the loader sees to.
    """
    num_levels = len(params.ch_mult)

    def file_key(module_key: str) -> str:
        key = module_key
        for pattern, replacement in _AUTOENCODER_RENAMES:
            key = re.sub(pattern, replacement, key)
        return re.sub(r"\bup\.(\d+)\.", lambda match: f"up.{num_levels - 1 - int(match[1])}.", key)

    return KeyMap(file_key=file_key, unused=() if is_encoder_used else (re.compile(r"encoder\..*"),))
