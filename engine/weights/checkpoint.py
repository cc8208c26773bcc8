"""Tensors in safetensors files, read one at a time; one file or many shards behind one set of keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import ModelLoadError

INDEX_SUFFIX = ".safetensors.index.json"
"""Beside shards lies an index that says which key is in which (Hugging Face's sharded layout)."""


class Checkpoint:
    """Open safetensors files. Shapes come from the headers; nothing is read before it is asked for.

    Attributes:
        name: what messages call it: the file, or the index of the shards.
        keys: every key in it.
    """

    def __init__(self, name: str, shards: dict[str, Path]) -> None:
        """``shards``: the file that holds each key. Use :func:`open_file` or :func:`open_index`."""
        self.name = name
        self.keys = frozenset(shards)
        self._shards = shards
        self._open: dict[Path, Any] = {}

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._file(key).get_slice(key).get_shape())

    def read(self, key: str, *, device: str, dtype: torch.dtype) -> Tensor:
        """One tensor, converted on the device it goes to."""
        tensor: Tensor = self._file(key).get_tensor(key)
        return tensor.to(device).to(dtype)

    def close(self) -> None:
        """Let go of the files."""
        for file in self._open.values():
            file.__exit__(None, None, None)
        self._open.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _file(self, key: str) -> Any:
        if key not in self.keys:
            raise ModelLoadError(f"{self.name}: key {key} is missing")
        path = self._shards[key]
        if path not in self._open:
            self._open[path] = _opened(path)
        return self._open[path]


def open_file(path: Path) -> Checkpoint:
    """One safetensors file. Raises ModelLoadError where it is absent, truncated or something else."""
    file = _opened(path)
    keys: list[str] = list(file.keys())
    file.__exit__(None, None, None)
    return Checkpoint(path.name, dict.fromkeys(keys, path))


def open_index(path: Path) -> Checkpoint:
    """The shards of an index. Raises ModelLoadError where a shard is absent, damaged, or lacks a key it should hold."""
    label = f"{path.parent.name}/{path.name}"
    try:
        weight_map: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = {key: path.parent / name for key, name in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{label} is not an index of safetensors shards") from error
    for shard in sorted(set(shards.values())):
        if shard.parent != path.parent:
            raise ModelLoadError(f"{label} names a shard outside its folder")
        with open_file(shard) as opened:
            held = opened.keys
        if absent := sorted(key for key, holder in shards.items() if holder == shard and key not in held):
            raise ModelLoadError(f"{shard.name}: key {absent[0]} is missing, though {label} says it is there")
    return Checkpoint(label, shards)


def find_in(folder: Path) -> Callable[[], Checkpoint] | None:
    """How to open the one checkpoint of a diffusers or transformers folder; None where there is none."""
    indices = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    if indices:
        return lambda: open_index(indices[0])
    files = sorted(folder.glob("*.safetensors"))
    return (lambda: open_file(files[0])) if files else None


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise ModelLoadError(f"{path.name} is missing in model folder {path.parent}")
    try:
        file: Any = safe_open(str(path), framework="pt", device="cpu")
        return file.__enter__()
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path.name} is not a complete safetensors file: {error}") from error
