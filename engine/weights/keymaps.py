"""Where each parameter of a network lies in its checkpoint file. Tables and renames, no tensors.

A :class:`KeyMap` answers for the *module's* key which keys of the *file* hold it; every other key of the file must be
named as unused, or the file is of another model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from engine.profile import AutoencoderParams


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where one parameter lies: the file's tensors that make it up, row after row.

    Attributes:
        keys: one key, or several whose rows are stacked (fused projections are stored apart in some layouts).
        is_halves_swapped: whether the upper and lower half of the rows change places.
    """

    keys: tuple[str, ...]
    is_halves_swapped: bool = False


def _same(key: str) -> Source:
    return Source(keys=(key,))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KeyMap:
    """How one network's parameters are stored in its checkpoint.

    Attributes:
        source: where the parameter with a module's key lies.
        prefixes: prefixes under which the whole network may lie in the file.
        unused: patterns of file keys that are known and not needed.
    """

    source: Callable[[str], Source] = _same
    prefixes: tuple[str, ...] = ()
    unused: tuple[re.Pattern[str], ...] = ()

    def is_unused(self, file_key: str) -> bool:
        """Whether a key of the file is known and not needed."""
        return any(pattern.fullmatch(file_key) for pattern in self.unused)


def _patterns(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern) for pattern in patterns)


FLUX = KeyMap(prefixes=("model.diffusion_model.",), unused=_patterns(r"text_encoders\..*", r"vae\..*"))
"""BFL's own keys. Single-file checkpoints of other tools put them under a prefix, at times beside everything else."""

IP_ADAPTER = KeyMap()
"""XLabs' own keys."""


def _t5_source(module_key: str) -> Source:
    return _same("shared.weight" if module_key == "encoder.embed_tokens.weight" else module_key)


T5 = KeyMap(source=_t5_source, unused=_patterns(r"encoder\.embed_tokens\.weight"))
"""Hugging Face's encoder keys; token embeddings are stored once or twice, and are one tensor."""


def _clip_text_source(module_key: str) -> Source:
    return _same(module_key.removeprefix(CLIP_TEXT_PREFIX))


CLIP_TEXT_PREFIX = "text_model."
"""Published files have it; transformers 5 dropped it from its module, and so from what it saves itself."""

CLIP_TEXT = KeyMap(
    source=_clip_text_source,
    prefixes=(CLIP_TEXT_PREFIX,),
    unused=_patterns(r"embeddings\.position_ids", r"text_projection\.weight", r"logit_scale"),
)
"""Hugging Face's text keys, alone or with the projection that Flux does not use."""

CLIP_VISION = KeyMap(
    unused=_patterns(
        r"vision_model\.embeddings\.position_ids", r"text_model\..*", r"text_projection\.weight", r"logit_scale"
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

    def source(module_key: str) -> Source:
        key = module_key
        for pattern, replacement in _AUTOENCODER_RENAMES:
            key = re.sub(pattern, replacement, key)
        return _same(re.sub(r"\bup\.(\d+)\.", lambda match: f"up.{num_levels - 1 - int(match[1])}.", key))

    return KeyMap(source=source, unused=() if is_encoder_used else _ENCODER)


_ENCODER = _patterns(r"encoder\..*")

DIFFUSERS_AUTOENCODER = KeyMap(unused=_ENCODER)
"""diffusers' own keys, which are the module's."""

_DIFFUSERS_BLOCKS = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}

_DIFFUSERS_MODULES = {
    # ours                               diffusers'
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    # inside a block
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}


def _diffusers_flux_source(module_key: str) -> Source:
    where, name = "", module_key
    stack, _, rest = module_key.partition(".")
    if stack in _DIFFUSERS_BLOCKS:
        index, _, name = rest.partition(".")
        where = f"{_DIFFUSERS_BLOCKS[stack]}.{index}."
    owner, _, leaf = name.rpartition(".")
    leaf = "weight" if leaf == "scale" else leaf
    keys = tuple(f"{where}{theirs}.{leaf}" for theirs in _DIFFUSERS_MODULES[owner])
    # BFL's last modulation gives shift before scale, diffusers' scale before shift.
    return Source(keys=keys, is_halves_swapped=owner == "final_layer.adaLN_modulation.1")


DIFFUSERS_FLUX = KeyMap(source=_diffusers_flux_source)
"""diffusers' names; its fused projections are stored apart. Source: diffusers 0.42.1 ``single_file_utils.py``."""
