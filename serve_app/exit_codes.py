"""How the command ends, for scripts. The same numbers for every subcommand."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Exit statuses of ``likeness``."""

    OK = 0
    """Done."""
    LOCAL_FAILURE = 1
    """Something on this machine: a file that can't be written, a command that failed."""
    BAD_INPUT = 2
    """The command line, a file it names, or the request: sending it again unchanged will not help."""
    BUSY = 3
    """The server was too busy, and still was after the retries."""
    UNREACHABLE = 4
    """No answer: nothing listens there, the connection broke, or the time was over."""
    SERVER_ERROR = 5
    """The server failed, or what it sent is not the picture that was asked for."""
    INTERRUPTED = 130
    """Ctrl-C; 128 + SIGINT, as shells have it."""
