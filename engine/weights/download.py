"""One file's bytes into a partial file, over as many connections and runs as it takes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from engine.weights.catalog import RemoteFile
from engine.weights.hub import Hub, HubFile
from engine.weights.pull_errors import HubUnreachableError, PullError, WrongContentError
from engine.weights.report import Reporter, human_bytes

MAX_ATTEMPTS: Final = 5
"""Failures in a row without a new byte, before a run gives up."""

FIRST_WAIT_S = 1.0
"""Between the first failure and the next attempt; then twice as long every time."""

T = TypeVar("T")


class Downloader:
    """A hub asked with patience. Remembers what the hub said of each file."""

    def __init__(self, hub: Hub, reporter: Reporter, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._hub = hub
        self._reporter = reporter
        self._sleep = sleep
        self._described: dict[RemoteFile, HubFile] = {}
        self._num_received_bytes = 0

    def describe(self, remote: RemoteFile) -> HubFile:
        """The hub's word on a file.

        Raises:
            WrongContentError: it contradicts the catalog: the pinned revision is not what we took it for.
            PullError: as :meth:`Hub.describe`, after some attempts.
        """
        return self._patiently(f"asking for {remote.path}", lambda: self._describe(remote))

    def fill(self, partial: Path, name: str, remote: RemoteFile, size_bytes: int) -> int:
        """Make ``partial`` as long as the file, going on from what it has; how many bytes came over the network.

        Raises:
            PullError: as :meth:`describe`. The partial file keeps what came.
            OSError: it can't be written.
        """
        received_before = self._num_received_bytes
        with partial.open("ab") as out:
            if out.tell() > size_bytes:  # of another file, or damaged: nothing of it is worth keeping
                _empty(out)
            self._reporter.begin(name, done_bytes=out.tell(), total_bytes=size_bytes)
            if out.tell() < size_bytes:
                self._patiently(name, lambda: self._receive(out, remote, size_bytes), progress=out.tell)
            out.flush()
            os.fsync(out.fileno())
        return self._num_received_bytes - received_before

    def _receive(self, out: BinaryIO, remote: RemoteFile, size_bytes: int) -> None:
        """Append what one connection brings."""
        found = self._describe(remote)
        self._described.pop(remote, None)  # addresses of storage expire: the next connection asks again
        position = out.tell()
        with self._hub.stream(remote, found, first_byte=position) as (first_byte, pieces):
            if first_byte not in (0, position):
                raise WrongContentError(f"{remote.path}: the server sent another part of the file than was asked for")
            if first_byte < position:
                self._reporter.note(f"{remote.path}: the server can't go on from the middle and starts over")
                self._reporter.advance(-position)
                _empty(out)
            for piece in pieces:
                out.write(piece)
                self._num_received_bytes += len(piece)
                self._reporter.advance(len(piece))
                if out.tell() > size_bytes:
                    _empty(out)
                    raise WrongContentError(f"{remote.path}: the server sends more than the {size_bytes} bytes it said")
        if out.tell() < size_bytes:
            raise HubUnreachableError(f"{remote.path}: the connection ended early: run the command again")

    def _describe(self, remote: RemoteFile) -> HubFile:
        if remote not in self._described:
            found = self._hub.describe(remote)
            _check_against_catalog(remote, found)
            self._described[remote] = found
        return self._described[remote]

    def _patiently(self, what: str, action: Callable[[], T], *, progress: Callable[[], int] = lambda: 0) -> T:
        """Do it again after passing failures, as long as it gets on or attempts are left."""
        attempt, mark = 0, progress()
        while True:
            try:
                return action()
            except PullError as error:
                attempt, mark = (attempt + 1 if progress() == mark else 1), progress()
                if not error.is_passing or attempt >= MAX_ATTEMPTS:
                    raise
                wait_s = FIRST_WAIT_S * 2 ** (attempt - 1)
                kept = f", {human_bytes(mark)} are kept" if mark else ""
                self._reporter.note(f"{what}: {error.what}{kept}, next attempt in {wait_s:.0f} s")
                self._sleep(wait_s)


def _check_against_catalog(remote: RemoteFile, found: HubFile) -> None:
    for what, ours, theirs in (
        ("size", remote.size_bytes, found.size_bytes),
        ("SHA-256", remote.sha256, found.sha256),
    ):
        if ours is not None and theirs is not None and ours != theirs:
            raise WrongContentError(
                f"{remote.repo_id} has another {remote.path} at revision {remote.revision} than the catalog says: "
                f"{what} {theirs} instead of {ours}; it was not downloaded"
            )


def _empty(out: BinaryIO) -> None:
    out.truncate(0)
    out.seek(0)
