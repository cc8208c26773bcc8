"""How long work on big files tells how far it is, without knowing of terminals."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Told about one piece of work after another."""

    def begin(self, text: str, *, done_bytes: int, total_bytes: int) -> None:
        """A new piece of work: ``text`` names it; ``done_bytes`` of ``total_bytes`` were there already."""

    def advance(self, num_bytes: int) -> None:
        """So many bytes more (or fewer, below zero, where work is done again)."""

    def note(self, text: str) -> None:
        """Something a person would like to know meanwhile."""


class Silent:
    """Tells nobody."""

    def begin(self, text: str, *, done_bytes: int, total_bytes: int) -> None: ...

    def advance(self, num_bytes: int) -> None: ...

    def note(self, text: str) -> None: ...


def human_bytes(num_bytes: float) -> str:
    """Decimal units, as hubs and disks are labelled: ``23.8 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.0f} {unit}" if unit in ("B", "kB") else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
