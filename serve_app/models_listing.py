"""What ``likeness models list`` says of a profile: as JSON, and as text made from the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.profile import ModelProfile
from engine.weights.catalog import RemoteFile, remote_files
from engine.weights.report import human_bytes


def listed(profile: ModelProfile, model_dir: Path | None) -> dict[str, Any]:
    """A profile's files with source, size and licence, and with a folder given, whether they are in it."""
    remotes = remote_files(profile)
    files = [
        {"name": name, "role": role, **_remote(remotes.get(name)), **_in_folder(name, remotes, model_dir)}
        for role, name in dataclasses.asdict(profile.files).items()
    ]
    sizes = [file["size_bytes"] for file in files]
    return {
        "name": profile.name,
        "title": profile.title,
        "licence": dataclasses.asdict(profile.licence),
        "size_bytes": None if None in sizes else sum(sizes),
        "files": files,
    }


def as_text(profile: dict[str, Any]) -> str:
    """The same for people: one line a file."""
    licence = profile["licence"]
    use = "" if licence["is_commercial_use_allowed"] else ", no commercial use"
    lines = [f"{profile['name']}: {profile['title']}", f"  licence: {licence['name']}{use} ({licence['url']})"]
    width = max(len(file["name"]) for file in profile["files"])
    for file in profile["files"]:
        size_bytes = file["size_bytes"] if file["size_bytes"] is not None else file.get("found_bytes")
        size = "?" if size_bytes is None else human_bytes(size_bytes)
        source = "not on the hub" if file["repo_id"] is None else f"{file['repo_id']}, {file['licence']}"
        gate = ", gated" if file["is_gated"] else ""
        state = f"  {file['state']:10}" if "state" in file else ""
        lines.append(f"  {file['name']:{width}}  {size:>8}{state}  {source}{gate}")
    if profile["size_bytes"] is not None:
        lines.append(f"  {'':{width}}  {human_bytes(profile['size_bytes']):>8}  in all")
    return "\n".join(lines)


def _remote(remote: RemoteFile | None) -> dict[str, Any]:
    if remote is None:
        return dict.fromkeys(("repo_id", "revision", "size_bytes", "sha256", "licence", "is_gated"))
    return {
        "repo_id": remote.repo_id,
        "revision": remote.revision,
        "size_bytes": remote.size_bytes,
        "sha256": remote.sha256,
        "licence": remote.terms.name,
        "is_gated": remote.is_gated,
    }


def _in_folder(name: str, remotes: Mapping[str, RemoteFile], model_dir: Path | None) -> dict[str, Any]:
    """By a look at name and size; ``models verify`` looks inside."""
    if model_dir is None:
        return {}
    path = model_dir / name
    if not path.is_file():
        return {"state": "absent"}
    size_bytes = path.stat().st_size
    expected = remotes[name].size_bytes if name in remotes else None
    return {"state": "present" if expected in (None, size_bytes) else "other size", "found_bytes": size_bytes}
