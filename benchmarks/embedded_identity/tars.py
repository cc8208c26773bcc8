"""What lies between drawing and judging: a few tar files of JPEG pictures, and a file of facts."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.request import RgbImage

TAR_BYTES = 15 * 10**6


def write_tars(files: dict[str, RgbImage], facts: dict[str, Any], out: Path) -> None:
    """``drawn-NN.tar`` of JPEG pictures, each under 15 MB, and ``drawn.json``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "drawn.json").write_text(json.dumps(facts) + "\n")
    groups: list[dict[str, bytes]] = [{}]
    size = 0
    for name, picture in files.items():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="JPEG", quality=88)
        entry_bytes = len(buffer.getvalue()) + 1024  # with tar's own block and padding
        if size + entry_bytes > TAR_BYTES:
            groups.append({})
            size = 0
        groups[-1][name] = buffer.getvalue()
        size += entry_bytes
    for number, group in enumerate(groups):
        with tarfile.open(out / f"drawn-{number:02d}.tar", "w") as tar:
            for name, data in group.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def read_tars(folder: Path) -> dict[str, RgbImage]:
    """The inverse of :func:`write_tars`, as far as pictures go."""
    files = {}
    for path in sorted(folder.glob("drawn-*.tar")):
        with tarfile.open(path) as tar:
            for entry in tar:
                file = tar.extractfile(entry)
                assert file is not None
                files[entry.name] = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
    return files
