"""What a profile will take on its device, from shapes alone: counted on networks that hold no memory."""

from __future__ import annotations

import torch
from torch import nn

from engine.config import EngineConfig
from engine.memory import MEMORY_PROFILES, MemoryPlan, MemoryProfileName
from engine.profile import ModelProfile
from engine.weights.folder import find, parts
from engine.weights.load import DTYPES, TEXT_ROLES, adapter_tokens, build

ACTIVATION_WIDTHS = 34
"""Peak activations of a step, in multiples of tokens × hidden size × bytes a number: a single block's fused
projections (7), its concatenated output (5), and rotary products in float32. A bound: the decoder's were larger."""

DECODER_WIDTHS = 6
"""Peak activations of the decoder, in multiples of pixels × widest full-resolution channels × bytes a number. At
1024² in bfloat16 an H200 showed 2.4 GiB, 4.8 of these (benchmarks/results/full_size_memory_h200.json)."""


def memory_plan(
    profile: ModelProfile, config: EngineConfig, name: MemoryProfileName, *, num_adapter_tokens: int
) -> MemoryPlan:
    """The plan of one memory profile."""
    memory = MEMORY_PROFILES[name]
    dtype_bytes = DTYPES[config.dtype].itemsize
    weights = {
        role: _num_bytes(
            build(role, profile, num_adapter_tokens, is_float8=memory.is_transformer_float8 and role == "transformer"),
            dtype_bytes,
        )
        for role in parts(profile)
    }
    visiting: dict[str, int] = {}
    if memory.is_text_offloaded:
        for role in TEXT_ROLES:
            del weights[role]
        largest = max(profile.t5.vocab_size * profile.t5.d_model, profile.t5.d_model * profile.t5.d_ff)
        visiting["a visiting text layer"] = largest * dtype_bytes
    # By the native size: a larger picture may still run out of memory, which ends that request and no other.
    token_bytes = ACTIVATION_WIDTHS * profile.transformer.hidden_size * dtype_bytes
    is_recording = config.device == "cuda" and config.max_recorded_shapes > 0
    recorded = {"recorded steps": profile.native_tokens * token_bytes} if is_recording else {}
    autoencoder = profile.autoencoder
    return MemoryPlan(
        name=name,
        lasting={**weights, "caches": config.text_cache_bytes + config.image_cache_bytes, **recorded},
        passing={
            "a step": max(config.max_batch_tokens, profile.native_tokens) * token_bytes,
            "decoding": DECODER_WIDTHS
            * profile.size.native.num_pixels
            * autoencoder.ch
            * autoencoder.ch_mult[1]
            * dtype_bytes,
            **visiting,
        },
    )


def memory_plans(config: EngineConfig) -> dict[MemoryProfileName, MemoryPlan]:
    """Every memory profile's plan for a model folder, which tells the adapter's size."""
    profile = config.profile
    with find(parts(profile)["adapter"], config.model_dir).checkpoint as checkpoint:
        num_tokens = adapter_tokens(checkpoint, profile)
    return {name: memory_plan(profile, config, name, num_adapter_tokens=num_tokens) for name in MEMORY_PROFILES}


def _num_bytes(module: nn.Module, dtype_bytes: int) -> int:
    """Float8 parameters as stored, everything else at the precision it is computed in; shared ones once."""
    return sum(
        parameter.numel() * (1 if parameter.dtype == torch.float8_e4m3fn else dtype_bytes)
        for parameter in module.parameters()
    )
