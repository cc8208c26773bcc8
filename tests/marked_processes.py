"""Finds every process that a test started, however it was started, by a variable that children inherit."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path

_NAME = "LIKENESS_TEST_MARKER"


class Marked:
    """A mark of its own for one test."""

    def __init__(self) -> None:
        self._value = secrets.token_hex(8)
        self.environment = os.environ | {_NAME: self._value}

    def processes(self) -> list[int]:
        """Ids of all living processes with the mark."""
        needle = f"{_NAME}={self._value}".encode()
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if needle in environ.read_bytes():
                    found.append(int(environ.parent.name))
        return found

    def open_descriptors(self) -> set[str]:
        """What they hold open: paths of files, ``socket:[inode]`` and the like."""
        targets = set()
        for pid in self.processes():
            with contextlib.suppress(OSError):
                for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        targets.add(str(descriptor.readlink()))
        return targets

    def socket_inodes(self) -> set[str]:
        """Inodes of all sockets that they hold open, in whichever network these are."""
        prefix = "socket:["
        return {target[len(prefix) : -1] for target in self.open_descriptors() if target.startswith(prefix)}

    def none_left(self) -> bool:
        """Whether all are gone; the kernel takes a moment to clear away what was killed."""
        for _ in range(3000):
            if not self.processes():
                return True
            time.sleep(0.02)
        return False


def wait_for(path: Path) -> None:
    """Until a file appears."""
    for _ in range(3000):
        if path.exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} never appeared")
