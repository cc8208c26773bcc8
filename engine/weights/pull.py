"""Fetch a profile's files into a model folder: pinned, resumable, checked, put in place whole or not at all.

A file grows as ``.<name>.<checksum>.partial`` beside its place; the next run goes on from there. Only when size and
checksum are right does it get its name, in one rename.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

from engine.weights.catalog import RemoteFile, terms_of
from engine.weights.checksum import has_receipt, sha256_of, write_receipt
from engine.weights.download import Downloader
from engine.weights.hub import Hub
from engine.weights.pull_errors import (
    DiskFullError,
    LicenceNotAcceptedError,
    LocalFolderError,
    NotEnoughSpaceError,
    NothingToPullError,
    OtherFileError,
    WrongContentError,
)
from engine.weights.report import Reporter, Silent, human_bytes

_LOCK_FILE: Final = ".pull.lock"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Pulled:
    """One file that is now in the folder.

    Attributes:
        fetched_bytes: how many came over the network in this run; 0 where the file was there already.
        checked_against: whose checksum it was found to have; ``nobody`` where neither knows one.
    """

    name: str
    size_bytes: int
    fetched_bytes: int
    checked_against: Literal["catalog", "hub", "nobody"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A file to have: where from, and what its content has to be."""

    name: str
    remote: RemoteFile
    size_bytes: int
    sha256: str | None

    @property
    def partial_name(self) -> str:
        """Bytes of different content never meet in one partial file."""
        return f".{self.name}.{(self.sha256 or self.remote.revision)[:12]}.partial"

    @property
    def checked_against(self) -> Literal["catalog", "hub", "nobody"]:
        """Whose checksum the file has to have."""
        if self.remote.sha256 is not None:
            return "catalog"
        return "nobody" if self.sha256 is None else "hub"

    def difference(self, path: Path, reporter: Reporter) -> str | None:
        """How the file at ``path`` differs from this one, in words; None where it does not."""
        size_bytes = path.stat().st_size
        if size_bytes != self.size_bytes:
            return f"has {size_bytes} bytes instead of {self.size_bytes}"
        if self.sha256 is None or has_receipt(path, self.sha256):
            return None
        found = sha256_of(path, reporter)
        if found != self.sha256:
            return f"has the SHA-256 {found} instead of {self.sha256}"
        write_receipt(path, found)
        return None


def free_bytes(folder: Path) -> int:
    """Room left for an ordinary user on the file system of a folder."""
    return shutil.disk_usage(folder).free


def pull(
    files: Mapping[str, RemoteFile],
    model_dir: Path,
    *,
    hub: Hub,
    accepted_licences: Collection[str],
    is_replacing: bool = False,
    reporter: Reporter | None = None,
    free_bytes: Callable[[Path], int] = free_bytes,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Pulled, ...]:
    """Bring every file into ``model_dir``. What is there and right is left alone, without asking the hub.

    Args:
        files: by the name they get in the folder; see :func:`engine.weights.catalog.remote_files`.
        accepted_licences: names of the licences that somebody has agreed to.
        is_replacing: fetch over other files of these names.

    Raises:
        PullError: see :mod:`engine.weights.pull_errors`. What was fetched until then is kept for the next run.
    """
    if not files:
        raise NothingToPullError("this profile has no files on the hub")
    _check_licences(files, accepted_licences)
    reporter = reporter or Silent()
    downloader = Downloader(hub, reporter, sleep=sleep)
    with _locked(model_dir):
        # All files are looked at before the first is fetched: a gated last one must not cost the others' download.
        wanted = [_wanted(name, remote, downloader) for name, remote in files.items()]
        missing = [file for file in wanted if not _is_in_place(file, model_dir, reporter, is_replacing=is_replacing)]
        for file in missing:
            downloader.describe(file.remote)
        _check_space(model_dir, missing, free_bytes(model_dir))
        fetched = {file.name: _fetch(file, model_dir, downloader, reporter) for file in missing}
    return tuple(
        Pulled(
            name=file.name,
            size_bytes=file.size_bytes,
            fetched_bytes=fetched.get(file.name, 0),
            checked_against=file.checked_against,
        )
        for file in wanted
    )


def _wanted(name: str, remote: RemoteFile, downloader: Downloader) -> Wanted:
    """By the catalog, and by the hub where the catalog does not know."""
    if remote.size_bytes is not None and remote.sha256 is not None:
        return Wanted(name=name, remote=remote, size_bytes=remote.size_bytes, sha256=remote.sha256)
    found = downloader.describe(remote)
    return Wanted(name=name, remote=remote, size_bytes=found.size_bytes, sha256=remote.sha256 or found.sha256)


def _is_in_place(file: Wanted, folder: Path, reporter: Reporter, *, is_replacing: bool) -> bool:
    path = folder / file.name
    if not path.exists():
        return False
    with _local_errors(file, folder):
        difference = file.difference(path, reporter)
    if difference is not None and not is_replacing:
        raise OtherFileError(
            f"{file.name} is in the folder and {difference}: move it away, or use --replace to fetch over it"
        )
    return difference is None


def _fetch(file: Wanted, folder: Path, downloader: Downloader, reporter: Reporter) -> int:
    """Download, check and put in place; how many bytes came over the network."""
    partial, path = folder / file.partial_name, folder / file.name
    with _local_errors(file, folder):
        num_fetched = downloader.fill(partial, file.name, file.remote, file.size_bytes)
        difference = file.difference(partial, reporter)
        if difference is not None:
            partial.unlink()
            raise WrongContentError(
                f"{file.name} as downloaded {difference}: it was not put in place; run the command again"
            )
        partial.chmod(0o644)  # a service may run as another user than the one who downloads
        partial.replace(path)
        for stale in (path for path in folder.iterdir() if _is_partial_of(path.name, file.name)):
            stale.unlink()
    if file.sha256 is not None:
        write_receipt(path, file.sha256)
    return num_fetched


def _is_partial_of(candidate: str, name: str) -> bool:
    return candidate.startswith(f".{name}.") and candidate.endswith(".partial")


def _check_licences(files: Mapping[str, RemoteFile], accepted: Collection[str]) -> None:
    covered = terms_of(files).items()
    missing = {terms: names for terms, names in covered if terms.must_be_accepted and terms.name not in accepted}
    if missing:
        raise LicenceNotAcceptedError(missing)


def _check_space(folder: Path, missing: Collection[Wanted], num_free: int) -> None:
    """What is still to come must fit, before the first byte of it comes."""
    num_needed = 0
    for file in missing:
        partial = folder / file.partial_name
        num_kept = partial.stat().st_size if partial.exists() else 0
        num_needed += file.size_bytes - (num_kept if num_kept <= file.size_bytes else 0)
    if num_needed > num_free:
        raise NotEnoughSpaceError(
            f"{human_bytes(num_needed)} are still to come and {human_bytes(num_free)} are free in {folder}: free "
            f"{human_bytes(num_needed - num_free)} more, or choose another --model-dir"
        )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One run a folder at a time: two would write into the same partial file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK_FILE).open("w")
    except OSError as error:
        raise LocalFolderError(f"can't use {folder} as a model folder: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LocalFolderError(f"another pull is at work in {folder}: wait until it is done") from error
        yield


@contextlib.contextmanager
def _local_errors(file: Wanted, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"the disk of {folder} is full: free some room and run the command again; it goes on with {file.name} "
                f"where it stopped"
            ) from error
        raise LocalFolderError(f"can't read or write {file.name} in {folder}: {error.strerror}") from error
