"""A model folder with random weights, in exactly the files, keys and layouts that the loader reads.

For trying out a service, its memory and its speed at any profile's true sizes without its licensed weights. Pictures
drawn with it are noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.config import DeviceName, DtypeName
from engine.model.autoencoder import build_autoencoder
from engine.model.clip_vision import build_clip_vision
from engine.model.flux import Flux
from engine.model.text import build_clip_text, build_t5
from engine.profile import ModelProfile
from engine.weights import keymaps
from engine.weights.keymaps import KeyMap
from engine.weights.load import DTYPES, build_adapter

NUM_ADAPTER_TOKENS = 16
"""As in XLabs' adapter v2."""


def write_untrained(
    profile: ModelProfile,
    folder: str,
    *,
    seed: int = 0,
    dtype: DtypeName = "bfloat16",
    device: DeviceName = "cpu",
    on_file: Callable[[str], None] | None = None,
) -> None:
    """Write all files of a profile. Existing files of these names are replaced, each at once.

    Args:
        seed: the same seed gives the same bytes on the same kind of device.
        device: where numbers are drawn; a GPU makes FLUX.1-dev's 17 billion in seconds.
        on_file: called with each file's name before it is made.
    """
    parts: tuple[tuple[str, Callable[[], nn.Module], KeyMap, str], ...] = (
        (profile.files.transformer, lambda: Flux(profile.transformer), keymaps.FLUX, ""),
        (profile.files.adapter, lambda: build_adapter(profile, NUM_ADAPTER_TOKENS), keymaps.IP_ADAPTER, ""),
        (profile.files.t5, lambda: build_t5(profile.t5), keymaps.T5, ""),
        (profile.files.clip, lambda: build_clip_text(profile.clip), keymaps.CLIP_TEXT, keymaps.CLIP_TEXT_PREFIX),
        (profile.files.clip_vision, lambda: build_clip_vision(profile.clip_vision), keymaps.CLIP_VISION, ""),
        (
            profile.files.autoencoder,
            lambda: build_autoencoder(profile.autoencoder),
            keymaps.autoencoder(profile.autoencoder, is_encoder_used=True),
            "",
        ),
    )
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for index, (name, build, key_map, prefix) in enumerate(parts):
        if on_file is not None:
            on_file(name)
        generator = torch.Generator(device).manual_seed(seed * len(parts) + index)
        with torch.device("meta"):
            module = build()
        tensors = {
            prefix + key_map.source(key).keys[0]: _random(key, tensor, generator, DTYPES[dtype])
            for key, tensor in module.state_dict().items()
            if not key_map.is_unused(key)
        }
        partial = target / f".{name}.partial"
        save_file(tensors, str(partial), metadata={"format": "pt"})
        partial.chmod(0o644)  # safetensors makes it private; a service may run as another user
        partial.replace(target / name)


def _random(key: str, like: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Weights at the scale of a fresh network: matrices keep variance, norms are one, biases small."""
    is_norm = "norm" in key and like.ndim == 1
    if is_norm and not key.endswith("bias"):
        return torch.ones(like.shape, dtype=dtype)
    fan_in = math.prod(like.shape[1:]) if like.ndim > 1 else like.shape[0]
    std = 0.02 if like.ndim == 1 or "embed" in key else 1.0 / math.sqrt(fan_in)
    values = torch.randn(like.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return (values * std).to(dtype).cpu()
