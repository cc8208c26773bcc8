"""Runs a command so that nothing it starts outlives it, and where the machine allows, so that nothing can reach it.

Ray listens on every interface, writes to the home folder and starts a dozen processes. So the command gets its own
process namespace (when its first process ends, the kernel ends all others), its own network namespace with nothing
but loopback where asked for, and a private home and temporary folder. Where namespaces are not allowed (some
containers, other systems) it runs plainly, and :mod:`serve_app.local.init` ends its descendants one by one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from serve_app.local.init import GRACE_S, INTERRUPTED, command_of

STOP_TIMEOUT_S = GRACE_S + 7.0
"""How long an asked-for stop may take before everything is killed."""

PRIVATE_FOLDER_ENV = "LIKENESS_PRIVATE_FOLDER"
"""Set for the command: a folder of its own that vanishes with it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Isolation:
    """How a command is kept apart.

    Attributes:
        unshare_flags: arguments of ``unshare(1)``; empty runs plainly.
        is_network_private: only loopback inside, unreachable from outside.
    """

    unshare_flags: tuple[str, ...] = ()
    is_network_private: bool = False

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command that runs ``command`` so."""
        if not self.unshare_flags:
            return list(command)
        return ["unshare", *self.unshare_flags, "--", *command]


PLAIN = Isolation()


def best_isolation(*, wants_private_network: bool) -> Isolation:
    """The strictest isolation that this machine allows, found by trying."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return PLAIN
    common = ("--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    network = ("--net",) if wants_private_network else ()
    for user in (("--user", "--map-root-user"), ()):
        flags = (*user, *network, *common)
        probe = subprocess.run(  # noqa: S603
            ["unshare", *flags, "--", "true"],  # noqa: S607
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if probe.returncode == 0:
            return Isolation(unshare_flags=flags, is_network_private=wants_private_network)
    return PLAIN


def private_environment(folder: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """The inherited environment with everything that Ray would share with other users of the machine made private."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    environment = dict(inherited)
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):  # they would lead to somebody else's cluster
        environment.pop(name, None)
    environment |= {
        PRIVATE_FOLDER_ENV: str(folder),
        "HOME": str(home),
        "RAY_TMPDIR": str(folder),
        # Ray's ports are open to all who can reach the machine: only who holds this run's token gets in.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # serve_app.proxy_replay; named here, so that starting stays free of imports
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.proxy_replay:middlewares",
        # A body, a crop, a picture: what is larger than 100 kB would go through Ray's object store, and a call with it
        # takes 11 ms instead of 7 (docs/performance.md).
        "RAY_max_direct_call_object_size": str(2**20),
        "PYTHONUNBUFFERED": "1",
    }
    return environment


def run_contained(
    command: Sequence[str], isolation: Isolation, *, environment: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> int:
    """Run ``command`` to its end, or until SIGINT, SIGTERM or SIGHUP, which end it and all that it started.

    Returns its exit status; 130 where it was interrupted. A second signal kills at once. ``pass_fds`` are open for it.
    """
    with _private_folder() as folder, _lifeline() as (read_fd, close_lifeline):
        init = [
            sys.executable,
            "-m",
            "serve_app.local.init",
            "--lifeline-fd",
            str(read_fd),
            "--private-folder",
            str(folder),
        ]
        init += ["--loopback"] if isolation.is_network_private else []
        stopper = _Stopper(close_lifeline)
        with stopper.installed():
            process = subprocess.Popen(  # noqa: S603
                isolation.wrap([*init, "--", *command]),
                env=private_environment(folder, environment),
                pass_fds=(read_fd, *pass_fds),
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the others in order
            )
            return stopper.wait(process)


class _Stopper:
    """Turns signals into an orderly stop, and a second one into a quick one."""

    def __init__(self, close_lifeline: contextlib.ExitStack) -> None:
        self._close_lifeline = close_lifeline
        self._num_signals = 0

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {signum: signal.signal(signum, self._on_signal) for signum in handled}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        waited_s = 0.0
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(0.1)
                return INTERRUPTED if self._num_signals else status
            if not self._num_signals:
                continue
            self._close_lifeline.close()
            waited_s += 0.1
            if self._num_signals > 1 or waited_s > STOP_TIMEOUT_S:
                process.kill()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._num_signals += 1


@contextlib.contextmanager
def _lifeline() -> Iterator[tuple[int, contextlib.ExitStack]]:
    """A pipe's read end, and what closes the write end: by hand, at the end, or with this process."""
    read_fd, write_fd = os.pipe()
    with contextlib.ExitStack() as write_end:
        write_end.callback(os.close, write_fd)
        try:
            yield read_fd, write_end
        finally:
            os.close(read_fd)


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    # Short and in /tmp: the paths of Ray's unix sockets must stay under 108 bytes.
    folder = Path(tempfile.mkdtemp(prefix="likeness-", dir="/tmp" if Path("/tmp").is_dir() else None))  # noqa: S108
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m serve_app.local.contain [--private-network] -- COMMAND``."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.local.contain", description=__doc__)
    parser.add_argument("--private-network", action="store_true", help="nothing but loopback, where allowed")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    arguments = parser.parse_args(argv)
    command = command_of(arguments, parser)
    isolation = best_isolation(wants_private_network=arguments.private_network)
    return run_contained(command, isolation, environment=os.environ)


if __name__ == "__main__":
    sys.exit(main())
