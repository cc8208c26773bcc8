"""Trained networks into the engine's six files, and back; small enough to commit, with where they come from.

python -m embedded.train.export join PARTS_DIR MODEL_DIR      # put together what --stage export cut up
python -m embedded.train.export install MODEL_DIR             # into embedded/weights, factors into the profile
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from embedded.train.networks import Learner
from engine.model.autoencoder import build_autoencoder
from engine.profile import ModelProfile, load_profile
from engine.weights import keymaps
from engine.weights.keymaps import KeyMap

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
"""Where the trained model lies in the repository."""

PROVENANCE = "provenance.json"
PART_BYTES = 15 * 10**6
STORED = torch.float16
"""Eleven bits of mantissa where bfloat16 has eight; no weight here is near float16's limits, which is checked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _File:
    name: str
    module: nn.Module
    key_map: KeyMap
    prefix: str = ""

    def file_key(self, module_key: str) -> str:
        return self.prefix + self.key_map.source(module_key).keys[0]

    def stored_keys(self) -> dict[str, str]:
        """File keys by module key; what is one tensor under two names is stored once."""
        return {key: self.file_key(key) for key in self.module.state_dict() if not self.key_map.is_unused(key)}


def _files(learner: Learner, autoencoder: Any, profile: ModelProfile) -> list[_File]:
    names = profile.files
    files = [
        _File(name=names.transformer, module=learner.flux, key_map=keymaps.FLUX),
        _File(name=names.adapter, module=learner.adapter, key_map=keymaps.IP_ADAPTER),
        _File(name=names.t5, module=learner.t5, key_map=keymaps.T5),
        _File(name=names.clip, module=learner.clip, key_map=keymaps.CLIP_TEXT, prefix=keymaps.CLIP_TEXT_PREFIX),
        _File(name=names.clip_vision, module=learner.vision, key_map=keymaps.CLIP_VISION),
    ]
    return [*files, autoencoder_file(autoencoder, profile)]


def autoencoder_file(autoencoder: Any, profile: ModelProfile) -> _File:
    """The autoencoder's place, encoder and all."""
    key_map = keymaps.autoencoder(profile.autoencoder, is_encoder_used=True)
    return _File(name=profile.files.autoencoder, module=autoencoder, key_map=key_map)


def write_model(
    learner: Learner, autoencoder: Any, profile: ModelProfile, folder: Path, *, provenance: dict[str, Any]
) -> None:
    """All six files and ``provenance.json``, which gets the files' sizes and sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    files = _files(learner, autoencoder, profile)
    for file in files:
        write_network(file, folder)
    listed = {
        file.name: {
            "bytes": (folder / file.name).stat().st_size,
            "sha256": hashlib.sha256((folder / file.name).read_bytes()).hexdigest(),
        }
        for file in files
    }
    content = provenance | {
        "licence": profile.licence.name,
        "scale_factor": profile.autoencoder.scale_factor,
        "shift_factor": profile.autoencoder.shift_factor,
        "stored_as": str(STORED).removeprefix("torch."),
        "files": listed,
    }
    (folder / PROVENANCE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_network(file: _File, folder: Path) -> None:
    """One file. Raises ValueError where a weight does not fit the stored precision."""
    state = file.module.state_dict()
    tensors: dict[str, Tensor] = {}
    for module_key, file_key in file.stored_keys().items():
        tensor = state[module_key].detach().cpu().to(STORED)
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{file.name}: {file_key} has values that {STORED} can't hold")
        # BFL's attention projections in the autoencoder are 1×1 convolutions.
        if ".attn_1." in file_key and tensor.ndim == 2:
            tensor = tensor[..., None, None]
        tensors[file_key] = tensor.contiguous()
    partial = folder / f".{file.name}.partial"
    save_file(tensors, str(partial), metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(folder / file.name)


def read_model(profile: ModelProfile, folder: Path) -> tuple[Learner, Any]:
    """Networks as :func:`write_model` left them, in float32, to go on from or to draw with."""
    learner, autoencoder = Learner(profile), build_autoencoder(profile.autoencoder)
    for file in _files(learner, autoencoder, profile):
        read_network(file, folder)
    return learner, autoencoder


def read_network(file: _File, folder: Path) -> None:
    """Fill one network from its file."""
    stored = load_file(str(folder / file.name))
    shapes = {key: tensor.shape for key, tensor in file.module.state_dict().items()}
    state = {key: stored[file.file_key(key)].float().reshape(shapes[key]) for key in shapes}
    file.module.load_state_dict(state, strict=True)


def with_factors(profile: ModelProfile, scale_factor: float, shift_factor: float) -> ModelProfile:
    """The profile with these factors of the latents."""
    params = dataclasses.replace(profile.autoencoder, scale_factor=scale_factor, shift_factor=shift_factor)
    return dataclasses.replace(profile, autoencoder=params)


def cut(folder: Path, out: Path, *, part_bytes: int = PART_BYTES) -> list[Path]:
    """A model folder as one archive in parts of limited size: ``model.tar.00`` …"""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, arcname=path.name)
    data = buffer.getvalue()
    out.mkdir(parents=True, exist_ok=True)
    parts = []
    for index, start in enumerate(range(0, len(data), part_bytes)):
        parts.append(out / f"model.tar.{index:02d}")
        parts[-1].write_bytes(data[start : start + part_bytes])
    return parts


def join(parts_dir: Path, folder: Path) -> None:
    """The inverse of :func:`cut`; checks every file against ``provenance.json``."""
    data = b"".join(path.read_bytes() for path in sorted(parts_dir.glob("model.tar.*")))
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(folder, filter="data")
    for name, known in json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["files"].items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != known["sha256"]:
            raise ValueError(f"{name} is damaged: its sha256 is not the one in {PROVENANCE}")


def install(folder: Path, weights: Path, profile_file: Path) -> None:
    """Copy a model folder to where the repository keeps it, and its factors into the profile."""
    provenance = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    weights.mkdir(parents=True, exist_ok=True)
    for name in (*provenance["files"], PROVENANCE):
        shutil.copyfile(folder / name, weights / name)
    text = profile_file.read_text(encoding="utf-8")
    for key in ("scale_factor", "shift_factor"):
        text, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {provenance[key]:.6g}", text)
        if count != 1:
            raise ValueError(f"{profile_file.name} has {count} lines for {key}, expected one")
    profile_file.write_text(text, encoding="utf-8")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    joining = commands.add_parser("join")
    joining.add_argument("parts", type=Path)
    joining.add_argument("folder", type=Path)
    installing = commands.add_parser("install")
    installing.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "join":
        join(arguments.parts, arguments.folder)
    else:
        install(arguments.folder, WEIGHTS, WEIGHTS.parents[1] / "engine" / "profiles" / "embedded.toml")
        load_profile("embedded")


if __name__ == "__main__":
    main()
