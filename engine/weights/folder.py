"""Which file of a model folder holds which network, and in which layout.

Every network may come as the single file that the profile names (ComfyUI's way), or as a component of a diffusers
folder (``transformer/``, ``vae/``, ``text_encoder/`` …, sharded or not). A single file comes first where both exist.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from engine.errors import ModelLoadError
from engine.profile import ModelProfile
from engine.weights import keymaps
from engine.weights.checkpoint import Checkpoint, find_in, open_file
from engine.weights.keymaps import KeyMap


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One network's place: the profile's file, or a component of a diffusers folder."""

    file: str
    key_map: KeyMap
    component: str | None = None
    component_key_map: KeyMap | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FoundPart:
    """An open checkpoint and how its keys are called."""

    checkpoint: Checkpoint
    key_map: KeyMap


def parts(profile: ModelProfile) -> dict[str, Part]:
    """The places of a profile's networks, by role."""
    files = profile.files
    return {
        "transformer": Part(
            file=files.transformer,
            key_map=keymaps.FLUX,
            component="transformer",
            component_key_map=keymaps.DIFFUSERS_FLUX,
        ),
        "adapter": Part(file=files.adapter, key_map=keymaps.IP_ADAPTER),
        "t5": Part(file=files.t5, key_map=keymaps.T5, component="text_encoder_2", component_key_map=keymaps.T5),
        "clip": Part(
            file=files.clip, key_map=keymaps.CLIP_TEXT, component="text_encoder", component_key_map=keymaps.CLIP_TEXT
        ),
        "clip_vision": Part(
            file=files.clip_vision,
            key_map=keymaps.CLIP_VISION,
            component="image_encoder",
            component_key_map=keymaps.CLIP_VISION,
        ),
        "autoencoder": Part(
            file=files.autoencoder,
            key_map=keymaps.autoencoder(profile.autoencoder),
            component="vae",
            component_key_map=keymaps.DIFFUSERS_AUTOENCODER,
        ),
    }


def find(part: Part, model_dir: str) -> FoundPart:
    """Open a part's checkpoint. Raises ModelLoadError where it is nowhere, or damaged."""
    folder = Path(model_dir)
    if not folder.is_dir():
        raise ModelLoadError(f"model folder {model_dir} does not exist")
    if (folder / part.file).exists():
        return FoundPart(checkpoint=open_file(folder / part.file), key_map=part.key_map)
    if part.component is None or part.component_key_map is None:
        raise ModelLoadError(f"{part.file} is missing in model folder {model_dir}")
    opener: Callable[[], Checkpoint] | None = find_in(folder / part.component)
    if opener is None:
        raise ModelLoadError(
            f"{part.file} is missing in model folder {model_dir}, and there is no diffusers folder {part.component}/"
        )
    return FoundPart(checkpoint=opener(), key_map=part.component_key_map)
