"""Whether a model folder holds what a profile needs: presence, size, checksum, and the keys and shapes in it.

No weights are loaded. Keys and shapes come from the files' headers, by the very checks that loading begins with.
"""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path

from engine.errors import ModelLoadError
from engine.profile import ModelProfile
from engine.weights.catalog import RemoteFile, remote_files
from engine.weights.checksum import has_receipt, sha256_of, write_receipt
from engine.weights.folder import Part, parts
from engine.weights.load import check_part
from engine.weights.report import Reporter, Silent


class Outcome(enum.StrEnum):
    """How one check ended."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown, not checked"
    """Nobody knows what it has to be."""
    NOT_ASKED = "not asked for"
    """A checksum takes minutes, and was not asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One check of one file. ``detail`` says what was found, where it failed also what was expected."""

    outcome: Outcome
    detail: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FileReport:
    """One file of a profile.

    Attributes:
        role: which network it holds; see ``ModelFiles``.
        name: the file, or the component of a diffusers folder that takes its place.
        size_bytes: as found; None where it is missing or a component.
        presence, size, checksum, contents: in this order, each without sense where an earlier one failed.
    """

    role: str
    name: str
    size_bytes: int | None
    presence: Check
    size: Check
    checksum: Check
    contents: Check

    @property
    def checks(self) -> dict[str, Check]:
        """The checks by name."""
        return {"presence": self.presence, "size": self.size, "checksum": self.checksum, "contents": self.contents}

    @property
    def is_good(self) -> bool:
        """Whether no check failed."""
        return all(check.outcome is not Outcome.FAILED for check in self.checks.values())


UNKNOWN = Check(outcome=Outcome.UNKNOWN)
NOT_ASKED = Check(outcome=Outcome.NOT_ASKED)


def verify(
    profile: ModelProfile, model_dir: Path, *, with_checksums: bool = False, reporter: Reporter | None = None
) -> tuple[FileReport, ...]:
    """Check every file of a profile. Reads headers, and all bytes where checksums are asked for."""
    remotes = remote_files(profile)
    reporter = reporter or Silent()
    return tuple(
        _verify_part(role, part, profile, model_dir, remotes.get(part.file), with_checksums, reporter)
        for role, part in parts(profile).items()
    )


def _verify_part(
    role: str,
    part: Part,
    profile: ModelProfile,
    model_dir: Path,
    remote: RemoteFile | None,
    with_checksums: bool,
    reporter: Reporter,
) -> FileReport:
    path = model_dir / part.file
    if path.is_file():
        return FileReport(
            role=role,
            name=part.file,
            size_bytes=path.stat().st_size,
            presence=Check(outcome=Outcome.OK),
            size=_size(path, remote),
            checksum=_checksum(path, remote, reporter) if with_checksums else _remembered(path, remote),
            contents=_contents(role, profile, model_dir),
        )
    component = part.component
    is_component = component is not None and (model_dir / component).is_dir()
    presence = Check(outcome=Outcome.OK) if is_component else Check(outcome=Outcome.FAILED, detail="missing")
    return FileReport(
        role=role,
        name=f"{component}/" if is_component else part.file,
        size_bytes=None,
        presence=presence,
        size=UNKNOWN,
        checksum=UNKNOWN,
        contents=_contents(role, profile, model_dir) if is_component else UNKNOWN,
    )


def _size(path: Path, remote: RemoteFile | None) -> Check:
    if remote is None or remote.size_bytes is None:
        return UNKNOWN
    found = path.stat().st_size
    if found == remote.size_bytes:
        return Check(outcome=Outcome.OK)
    return Check(outcome=Outcome.FAILED, detail=f"{found} bytes, the published file has {remote.size_bytes}")


def _remembered(path: Path, remote: RemoteFile | None) -> Check:
    if remote is None or remote.sha256 is None:
        return UNKNOWN
    return Check(outcome=Outcome.OK, detail="as checked before") if has_receipt(path, remote.sha256) else NOT_ASKED


def _checksum(path: Path, remote: RemoteFile | None, reporter: Reporter) -> Check:
    if remote is None or remote.sha256 is None:
        return UNKNOWN
    if remote.size_bytes is not None and path.stat().st_size != remote.size_bytes:
        return Check(outcome=Outcome.FAILED, detail="another size, so another checksum")
    try:
        found = sha256_of(path, reporter)
    except OSError as error:
        return Check(outcome=Outcome.FAILED, detail=f"can't be read: {error.strerror}")
    if found != remote.sha256:
        return Check(outcome=Outcome.FAILED, detail=f"SHA-256 {found}, the published file has {remote.sha256}")
    write_receipt(path, found)
    return Check(outcome=Outcome.OK)


def _contents(role: str, profile: ModelProfile, model_dir: Path) -> Check:
    try:
        check_part(role, profile, str(model_dir))
    except ModelLoadError as error:
        return Check(outcome=Outcome.FAILED, detail=error.message)
    return Check(outcome=Outcome.OK)
