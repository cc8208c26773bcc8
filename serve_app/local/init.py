"""The first process of a container: runs one command, and leaves no process behind however it ends.

Linux gives it the orphans of everything below it (``PR_SET_CHILD_SUBREAPER``, or being process 1 of a namespace), so
"what we started" is exactly "our descendants", whatever sessions or groups they moved to. It stops when the command
ends, or when the lifeline closes: a pipe whose other end its starter holds, so that it also stops when the starter
was killed. Standard library only: it must start at once.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

GRACE_S = 3.0
"""Between SIGTERM to the command and SIGKILL to all that is left. Nothing here has state to save."""

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
SIOCGIFFLAGS = 0x8913  # linux/sockios.h
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1  # linux/if.h

INTERRUPTED = 128 + signal.SIGINT
"""The exit status of a command that Ctrl-C ended, as shells have it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``command`` until it or the lifeline ends; its exit status, or 130 where the lifeline ended it."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.local.init", description=__doc__)
    parser.add_argument("--lifeline-fd", type=int, required=True, help="a pipe's read end; when it closes, stop")
    parser.add_argument("--private-folder", type=Path, help="to remove at the end")
    parser.add_argument("--loopback", action="store_true", help="bring the network namespace's lo up first")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    arguments = parser.parse_args(argv)
    command = command_of(arguments, parser)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The starter speaks through the lifeline. As process 1, a signal without a handler would be ignored anyway.
        signal.signal(signum, signal.SIG_IGN)
    if arguments.loopback:
        bring_loopback_up()
    adopt_orphans()
    os.set_inheritable(arguments.lifeline_fd, False)
    child = subprocess.Popen(  # noqa: S603
        command,
        preexec_fn=_restore_signals_and_die_with_parent,
        start_new_session=True,
        close_fds=False,  # what the starter passed on is the command's, except the lifeline
    )
    try:
        return _wait(child, arguments.lifeline_fd)
    finally:
        kill_descendants()
        if arguments.private_folder is not None:  # a starter that was killed can't
            shutil.rmtree(arguments.private_folder, ignore_errors=True)


def command_of(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """The words of the positional ``-- COMMAND``."""
    command: list[str] = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        parser.error("a command is missing after --")
    return command


def _wait(child: subprocess.Popen[bytes], lifeline_fd: int) -> int:
    while True:
        status = child.poll()
        if status is not None:
            return 128 - status if status < 0 else status
        _reap_orphan(child.pid)
        readable, _, _ = select.select([lifeline_fd], [], [], 0.1)
        if readable:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_S)
            return INTERRUPTED


def _reap_orphan(command_pid: int) -> None:
    """Collect an orphan that ended, if any; the command's own status is left to its Popen."""
    with contextlib.suppress(ChildProcessError):
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None and ended.si_pid != command_pid:
            os.waitpid(ended.si_pid, os.WNOHANG)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends (Linux; elsewhere a no-op)."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def kill_descendants(*, attempts: int = 200, pause_s: float = 0.02) -> None:
    """SIGKILL everything below this process, and reap it. Repeats, since a process may fork while it is looked at."""
    for _ in range(attempts):
        pids = descendants_of(os.getpid())
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(pause_s)


def descendants_of(pid: int) -> list[int]:
    """All processes below ``pid``, parents before children. Empty where the system does not say (no ``/proc``)."""
    children = _children_by_parent()
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def _children_by_parent() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            # proc(5): pid (name) state ppid …, and the name may hold anything, brackets too
            parent = int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    return children


def bring_loopback_up() -> None:
    """``ip link set lo up``, without needing ``ip``. A new network namespace starts with ``lo`` down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        name = b"lo".ljust(16, b"\0")
        answer = fcntl.ioctl(control, SIOCGIFFLAGS, name + bytes(24))
        flags = struct.unpack_from("h", answer, 16)[0] | IFF_UP
        fcntl.ioctl(control, SIOCSIFFLAGS, name + struct.pack("h", flags) + bytes(22))


def _restore_signals_and_die_with_parent() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
