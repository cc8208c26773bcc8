"""Checkpoint files into networks: built without memory, filled tensor by tensor, every key accounted for.

Networks are built on the meta device and take the file's tensors as their own (``assign``), converted on the way in,
so that a load needs the finished network's memory plus one tensor. Anything that does not fit ends in one
ModelLoadError that names the file, the key, what was expected and what was found.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from engine.config import DeviceName, DtypeName
from engine.errors import ModelLoadError
from engine.model.adapter import IPAdapter
from engine.model.autoencoder import LatentDecoder, build_autoencoder, drop_encoder
from engine.model.clip_vision import ClipImageEncoder, build_clip_vision
from engine.model.flux import Flux
from engine.model.text import TextEncoder, build_clip_text, build_t5
from engine.profile import ModelProfile
from engine.weights import keymaps
from engine.weights.keymaps import KeyMap

logger = logging.getLogger(__name__)

DTYPES: dict[DtypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

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


class CheckpointFile:
    """One safetensors file, open for reading. Shapes come from its header, tensors one at a time."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        if not path.is_file():
            raise ModelLoadError(f"{path.name} is missing in model folder {path.parent}")
        try:
            self._file: Any = safe_open(str(path), framework="pt", device="cpu")
            self._file.__enter__()
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"{path.name} is not a complete safetensors file: {error}") from error
        self.keys = frozenset(self._file.keys())

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        if key not in self.keys:
            raise ModelLoadError(f"{self.name}: key {key} is missing")
        return tuple(self._file.get_slice(key).get_shape())

    def read(self, key: str, *, device: str, dtype: torch.dtype) -> Tensor:
        """One tensor, converted on the device it goes to."""
        tensor: Tensor = self._file.get_tensor(key)
        return tensor.to(device).to(dtype)

    def close(self) -> None:
        """Let go of the file."""
        self._file.__exit__(None, None, None)

    def __enter__(self) -> CheckpointFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load_module(module: M, file: CheckpointFile, key_map: KeyMap, *, device: str, dtype: torch.dtype) -> M:
    """Fill a module that was built on the meta device. All checks come before the first tensor is read."""
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    prefix = next((p for p in key_map.prefixes if p and any(key.startswith(p) for key in file.keys)), "")
    sources = {key: prefix + key_map.file_key(key) for key in expected}
    _check_keys(file, key_map, sources, prefix)
    for key, source in sources.items():
        found = file.shape(source)
        if found != expected[key] and not _is_unit_convolution(found, expected[key]):
            raise ModelLoadError(f"{file.name}: key {source} has shape {list(found)}, expected {list(expected[key])}")

    tensors: dict[str, Tensor] = {}  # by file key: what is stored once stays one tensor
    state: dict[str, Tensor] = {}
    for key, source in sources.items():
        if source not in tensors:
            tensors[source] = file.read(source, device=device, dtype=dtype)
        state[key] = tensors[source].view(expected[key])
    module.load_state_dict(state, strict=True, assign=True)
    _fill_buffers(module, device)
    return module.requires_grad_(False).eval()


def _check_keys(file: CheckpointFile, key_map: KeyMap, sources: dict[str, str], prefix: str) -> None:
    if missing := sorted(set(sources.values()) - file.keys):
        raise ModelLoadError(f"{file.name}: key {missing[0]} is missing ({len(missing)} keys in all)")
    unexpected = sorted(
        key for key in file.keys - set(sources.values()) if not key_map.is_unused(key.removeprefix(prefix))
    )
    if unexpected:
        raise ModelLoadError(
            f"{file.name}: key {unexpected[0]} does not belong to this model ({len(unexpected)} such keys)"
        )


def _is_unit_convolution(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether a 1×1 convolution's weight is stored where a linear layer's is expected."""
    return found == (*expected, 1, 1)


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


def on_meta(build: Callable[[], M]) -> M:
    """Build a module without memory for its weights."""
    with torch.device("meta"):
        return build()


def load_image_encoder(
    profile: ModelProfile, model_dir: str, *, device: DeviceName = "cpu", dtype: DtypeName = "float32"
) -> ClipImageEncoder:
    """CLIP's vision tower alone: for the CPU face stage.

    Raises:
        ModelLoadError: the file is missing, corrupt or of another model.
    """
    network = on_meta(lambda: build_clip_vision(profile.clip_vision))
    with CheckpointFile(Path(model_dir) / profile.files.clip_vision) as file:
        load_module(network, file, keymaps.CLIP_VISION, device=device, dtype=DTYPES[dtype])
    return ClipImageEncoder(network, profile.clip_vision)


def load_networks(
    profile: ModelProfile,
    model_dir: str,
    *,
    device: DeviceName,
    dtype: DtypeName,
    on_stage: Callable[[str, float], None] | None = None,
) -> Networks:
    """Every network of a profile from its model folder, ready to run.

    Args:
        on_stage: called after each file with its name and the seconds it took.

    Raises:
        ModelLoadError: a file is missing, corrupt or of another model.
    """
    folder = Path(model_dir)
    if not folder.is_dir():
        raise ModelLoadError(f"model folder {model_dir} does not exist")

    def load(name: str, build: Callable[[CheckpointFile], M], key_map: KeyMap) -> M:
        started_s = time.monotonic()
        with CheckpointFile(folder / name) as file:
            module = on_meta(lambda: build(file))
            load_module(module, file, key_map, device=device, dtype=DTYPES[dtype])
        seconds = time.monotonic() - started_s
        logger.info("loaded %s in %.2f s", name, seconds)
        if on_stage is not None:
            on_stage(name, seconds)
        return module

    files = profile.files
    flux = load(files.transformer, lambda _: Flux(profile.transformer), keymaps.FLUX)
    adapter = load(
        files.adapter, lambda file: build_adapter(profile, num_adapter_tokens(file, profile)), keymaps.IP_ADAPTER
    )
    adapter.inject(flux)
    t5: Any = load(files.t5, lambda _: build_t5(profile.t5), keymaps.T5)
    clip: Any = load(files.clip, lambda _: build_clip_text(profile.clip), keymaps.CLIP_TEXT)
    vision: Any = load(files.clip_vision, lambda _: build_clip_vision(profile.clip_vision), keymaps.CLIP_VISION)
    autoencoder = load(
        files.autoencoder,
        lambda _: drop_encoder(build_autoencoder(profile.autoencoder)),
        keymaps.autoencoder(profile.autoencoder),
    )
    return Networks(
        flux=flux,
        adapter=adapter,
        text=TextEncoder(t5, clip, t5_params=profile.t5, clip_params=profile.clip),
        vision=ClipImageEncoder(vision, profile.clip_vision),
        decoder=LatentDecoder(autoencoder, profile.autoencoder),
    )


def num_adapter_tokens(file: CheckpointFile, profile: ModelProfile) -> int:
    """Image tokens a picture: 4 in XLabs' v1, 16 in v2; only the weight's shape tells."""
    rows = file.shape(ADAPTER_TOKENS_KEY)[0]
    token_dim = profile.transformer.context_in_dim
    if rows % token_dim:
        raise ModelLoadError(
            f"{file.name}: key {ADAPTER_TOKENS_KEY} has {rows} rows, expected a multiple of {token_dim}"
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
