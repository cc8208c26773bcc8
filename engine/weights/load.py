"""Checkpoint files into networks: built without memory, filled tensor by tensor, every key accounted for.

Networks are built on the meta device and take the file's tensors as their own, converted on the way in, so that a
load needs the finished network's memory plus one tensor. Anything that does not fit ends in one ModelLoadError that
names the file, the key, what was expected and what was found, before the first tensor is read.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from engine.config import DeviceName, DtypeName
from engine.errors import ModelLoadError
from engine.memory import MEMORY_PROFILES, MemoryProfile
from engine.model.adapter import IPAdapter
from engine.model.autoencoder import LatentDecoder, build_autoencoder, drop_encoder
from engine.model.clip_vision import ClipImageEncoder, build_clip_vision
from engine.model.flux import Flux
from engine.model.text import TextEncoder, build_clip_text, build_t5
from engine.profile import ModelProfile
from engine.runtime.float8 import Float8Linear, store_blocks_in_float8
from engine.runtime.offload import Offloaded
from engine.weights.checkpoint import Checkpoint
from engine.weights.folder import FoundPart, find, parts
from engine.weights.keymaps import KeyMap, Source

logger = logging.getLogger(__name__)

DTYPES: dict[DtypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

TEXT_ROLES = ("t5", "clip")

ADAPTER_TOKENS_KEY = "ip_adapter_proj_model.proj.weight"

M = TypeVar("M", bound=nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Networks:
    """All networks of one profile on one device. The adapter is injected into ``flux``."""

    flux: Flux
    adapter: IPAdapter
    text: TextEncoder
    vision: ClipImageEncoder
    decoder: LatentDecoder


def build(role: str, profile: ModelProfile, num_adapter_tokens: int, *, is_float8: bool = False) -> Any:
    """One network of a profile, without memory for its weights."""
    with torch.device("meta"):
        match role:
            case "transformer":
                flux = Flux(profile.transformer)
                if is_float8:
                    store_blocks_in_float8(flux)
                return flux
            case "adapter":
                return build_adapter(profile, num_adapter_tokens)
            case "t5":
                return build_t5(profile.t5)
            case "clip":
                return build_clip_text(profile.clip)
            case "clip_vision":
                return build_clip_vision(profile.clip_vision)
            case "autoencoder":
                return drop_encoder(build_autoencoder(profile.autoencoder))
    raise AssertionError(f"no such role: {role}")


def check_module(module: nn.Module, found: FoundPart) -> dict[str, Source]:
    """Where every parameter of a module lies, after checking keys and shapes against the headers alone.

    Raises:
        ModelLoadError: a key is missing, unexpected or of the wrong shape.
    """
    checkpoint, key_map = found.checkpoint, found.key_map
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    prefix = next((p for p in key_map.prefixes if any(key.startswith(p) for key in checkpoint.keys)), "")
    sources = {key: _prefixed(key_map.source(key), prefix) for key in expected}
    _check_keys(checkpoint, key_map, {key for source in sources.values() for key in source.keys}, prefix)
    for key, source in sources.items():
        _check_shape(checkpoint, source, expected[key])
    return sources


def load_module(module: M, found: FoundPart, *, device: str, dtype: torch.dtype) -> M:
    """Fill a module that was built on the meta device. All checks come before the first tensor is read."""
    sources = check_module(module, found)
    shapes = {key: tensor.shape for key, tensor in module.state_dict().items()}
    parameters: dict[Source, nn.Parameter] = {}  # what is stored once stays one parameter
    for key, source in sources.items():
        owner, _, leaf = key.rpartition(".")
        target = module.get_submodule(owner)
        if source in parameters:
            target.register_parameter(leaf, parameters[source])
            continue
        tensor = _read(found.checkpoint, source, device=device, dtype=dtype).view(shapes[key])
        if isinstance(target, Float8Linear) and leaf == "weight":
            target.store(tensor)
        else:
            parameters[source] = nn.Parameter(tensor, requires_grad=False)
            target.register_parameter(leaf, parameters[source])
    _fill_buffers(module, device)
    return module.eval()


def load_image_encoder(
    profile: ModelProfile, model_dir: str, *, device: DeviceName = "cpu", dtype: DtypeName = "float32"
) -> ClipImageEncoder:
    """CLIP's vision tower alone: for the CPU face stage.

    Raises:
        ModelLoadError: the file is missing, corrupt or of another model.
    """
    network = _load_part("clip_vision", profile, model_dir, device=device, dtype=dtype)
    return ClipImageEncoder(network, profile.clip_vision)


def load_networks(
    profile: ModelProfile,
    model_dir: str,
    *,
    device: DeviceName,
    dtype: DtypeName,
    memory: MemoryProfile = MEMORY_PROFILES["resident"],
    on_stage: Callable[[str, float], None] | None = None,
) -> Networks:
    """Every network of a profile from its model folder, ready to run.

    Args:
        memory: which weights stay on the host, and which are stored in 8 bits.
        on_stage: called after each network with its role and the seconds it took.

    Raises:
        ModelLoadError: a file is missing, corrupt or of another model.
    """
    loaded: dict[str, Any] = {}
    check_model_folder(profile, model_dir)  # all of it first: a wrong last file must not cost a load of the others
    for role in parts(profile):
        started_s = time.monotonic()
        is_offloaded = memory.is_text_offloaded and role in TEXT_ROLES
        is_float8 = memory.is_transformer_float8 and role == "transformer"
        home: DeviceName = "cpu" if is_offloaded else device
        network = _load_part(role, profile, model_dir, device=home, dtype=dtype, is_float8=is_float8)
        loaded[role] = Offloaded(network, torch.device(device)) if is_offloaded else network
        seconds = time.monotonic() - started_s
        logger.info("loaded %s in %.2f s", role, seconds)
        if on_stage is not None:
            on_stage(role, seconds)
    loaded["adapter"].inject(loaded["transformer"])
    return Networks(
        flux=loaded["transformer"],
        adapter=loaded["adapter"],
        text=TextEncoder(loaded["t5"], loaded["clip"], t5_params=profile.t5, clip_params=profile.clip),
        vision=ClipImageEncoder(loaded["clip_vision"], profile.clip_vision),
        decoder=LatentDecoder(loaded["autoencoder"], profile.autoencoder),
    )


def check_model_folder(profile: ModelProfile, model_dir: str) -> None:
    """Check every file of a profile by its header: presence, keys and shapes. Reads no weights.

    Raises:
        ModelLoadError: for the first file that does not fit.
    """
    for role in parts(profile):
        check_part(role, profile, model_dir)


def check_part(role: str, profile: ModelProfile, model_dir: str) -> None:
    """Check one network's file; see :func:`check_model_folder`."""
    found = find(parts(profile)[role], model_dir)
    with found.checkpoint:
        check_module(_build_for(role, profile, found.checkpoint), found)


def adapter_tokens(checkpoint: Checkpoint, profile: ModelProfile) -> int:
    """Image tokens a picture: 4 in XLabs' v1, 16 in v2; only the weight's shape tells."""
    rows = checkpoint.shape(ADAPTER_TOKENS_KEY)[0]
    token_dim = profile.transformer.context_in_dim
    if rows % token_dim:
        raise ModelLoadError(
            f"{checkpoint.name}: key {ADAPTER_TOKENS_KEY} has {rows} rows, expected a multiple of {token_dim}"
        )
    return rows // token_dim


def build_adapter(profile: ModelProfile, num_tokens: int) -> IPAdapter:
    """The image-prompt adapter that fits a profile's transformer and vision tower."""
    return IPAdapter(
        embedding_dim=profile.clip_vision.projection_dim,
        token_dim=profile.transformer.context_in_dim,
        num_tokens=num_tokens,
        hidden_size=profile.transformer.hidden_size,
        num_heads=profile.transformer.num_heads,
        depth=profile.transformer.depth,
    )


def _load_part(
    role: str,
    profile: ModelProfile,
    model_dir: str,
    *,
    device: DeviceName,
    dtype: DtypeName,
    is_float8: bool = False,
) -> Any:
    found = find(parts(profile)[role], model_dir)
    with found.checkpoint:
        module = _build_for(role, profile, found.checkpoint, is_float8=is_float8)
        return load_module(module, found, device=device, dtype=DTYPES[dtype])


def _build_for(role: str, profile: ModelProfile, checkpoint: Checkpoint, *, is_float8: bool = False) -> Any:
    """Build the network that a checkpoint is for: an adapter's size is in its file alone."""
    num_tokens = adapter_tokens(checkpoint, profile) if role == "adapter" else 0
    return build(role, profile, num_tokens, is_float8=is_float8)


def _prefixed(source: Source, prefix: str) -> Source:
    return dataclasses.replace(source, keys=tuple(prefix + key for key in source.keys)) if prefix else source


def _check_keys(checkpoint: Checkpoint, key_map: KeyMap, needed: set[str], prefix: str) -> None:
    if missing := sorted(needed - checkpoint.keys):
        raise ModelLoadError(f"{checkpoint.name}: key {missing[0]} is missing ({len(missing)} keys in all)")
    unexpected = sorted(key for key in checkpoint.keys - needed if not key_map.is_unused(key.removeprefix(prefix)))
    if unexpected:
        raise ModelLoadError(
            f"{checkpoint.name}: key {unexpected[0]} does not belong to this model ({len(unexpected)} such keys)"
        )


def _check_shape(checkpoint: Checkpoint, source: Source, expected: tuple[int, ...]) -> None:
    shapes = [checkpoint.shape(key) for key in source.keys]
    found = (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else ()
    # A 1×1 convolution's weight may be stored where a linear layer's is expected.
    if found not in (expected, (*expected, 1, 1)) or len({shape[1:] for shape in shapes}) > 1:
        raise ModelLoadError(
            f"{checkpoint.name}: key {' + '.join(source.keys)} has shape {list(found)}, expected {list(expected)}"
        )


def _read(checkpoint: Checkpoint, source: Source, *, device: str, dtype: torch.dtype) -> Tensor:
    pieces = [checkpoint.read(key, device=device, dtype=dtype) for key in source.keys]
    tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return torch.cat(tensor.chunk(2)[::-1]) if source.is_halves_swapped else tensor


def _fill_buffers(module: nn.Module, device: str) -> None:
    """Position counters are the only buffers that no file holds; anything else would stay empty unnoticed."""
    for name, buffer in module.named_buffers():
        if not buffer.is_meta:
            continue
        owner, _, leaf = name.rpartition(".")
        if leaf != "position_ids":
            raise AssertionError(f"{type(module).__name__} has a buffer that was not loaded: {name}")
        positions = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
        module.get_submodule(owner).register_buffer(leaf, positions, persistent=False)
