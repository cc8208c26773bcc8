"""Checksums of big files, and receipts that save taking them again.

Reading 37 GB takes minutes. A receipt in the model folder remembers that a file of this size and modification time
had this checksum; whoever changes the file in any usual way makes it void.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, Final

from engine.weights.report import Reporter

RECEIPTS: Final = ".verified.json"
_CHUNK_BYTES: Final = 8 * 2**20


def sha256_of(path: Path, reporter: Reporter) -> str:
    """The file's checksum in hex, telling meanwhile how far it is."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        reporter.begin(f"{path.name}: checksum", done_bytes=0, total_bytes=path.stat().st_size)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            reporter.advance(len(chunk))
    return digest.hexdigest()


def has_receipt(path: Path, sha256: str) -> bool:
    """Whether this very file was found to have this checksum before."""
    return bool(_receipts(path.parent).get(path.name) == _entry(path, sha256))


def write_receipt(path: Path, sha256: str) -> None:
    """Remember a checksum that was just taken. A folder that can't be written goes without."""
    kept = {name: entry for name, entry in _receipts(path.parent).items() if path.with_name(name).exists()}
    receipts = kept | {path.name: _entry(path, sha256)}
    partial = path.with_name(f"{RECEIPTS}.partial")
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps(receipts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        partial.replace(path.with_name(RECEIPTS))


def _entry(path: Path, sha256: str) -> dict[str, Any]:
    status = path.stat()
    return {"sha256": sha256, "size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _receipts(folder: Path) -> dict[str, Any]:
    try:
        receipts = json.loads((folder / RECEIPTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # no receipts: the checksum is taken again
    return receipts if isinstance(receipts, dict) else {}
