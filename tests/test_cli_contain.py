"""Nothing that a contained command starts outlives it, whichever way it ends, with and without namespaces."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.local.contain import PLAIN, Isolation, best_isolation, private_environment
from tests.marked_processes import Marked, wait_for

# A daemon that left its parent, session and group and refuses to be asked; its marker is in its environment.
STUBBORN = "import signal, sys, time; [signal.signal(s, signal.SIG_IGN) for s in (1, 2, 15)]; time.sleep(600)"
START_STUBBORN = (
    "import os, subprocess, sys, time\n"
    f"subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], start_new_session=True)\n"
    "open(sys.argv[1], 'w').close()\n"
)
ISOLATIONS = {"plain": False, "isolated": True}


def isolation(is_isolated: bool) -> Isolation:
    best = best_isolation(wants_private_network=True) if is_isolated else PLAIN
    if is_isolated and best == PLAIN:
        pytest.skip("this machine does not allow namespaces")
    return best


@contextlib.contextmanager
def contained(
    code: str, marker: Marked, *, is_isolated: bool, arguments: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """``code`` in Python, contained by a process of its own."""
    starter = (
        # Python may lose a KeyboardInterrupt in the middle of an import; until we handle it, the kernel shall.
        "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "import sys; from serve_app.local.contain import *; import os\n"
        f"isolation = {isolation(is_isolated)!r}\n"
        "sys.exit(run_contained([sys.executable, '-c', *sys.argv[1:]], isolation, environment=os.environ))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", starter, code, *arguments],
        env=marker.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def marker() -> Marked:
    return Marked()


@pytest.mark.parametrize("is_isolated", ISOLATIONS.values(), ids=ISOLATIONS)
class TestEveryEnd:
    def test_exit_status_and_output_come_through(self, marker: Marked, is_isolated: bool) -> None:
        with contained("print('hello'); raise SystemExit(7)", marker, is_isolated=is_isolated) as process:
            out, _ = process.communicate(timeout=60.0)
        assert (out, process.returncode) == ("hello\n", 7)

    def test_a_daemon_that_left_its_session_ends_with_the_command(
        self, marker: Marked, is_isolated: bool, tmp_path: Path
    ) -> None:
        started = tmp_path / "started"
        with contained(START_STUBBORN, marker, is_isolated=is_isolated, arguments=(str(started),)) as process:
            assert process.wait(60.0) == 0
        assert started.exists()
        assert marker.none_left()

    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_ends_everything(
        self, marker: Marked, is_isolated: bool, tmp_path: Path, signum: signal.Signals
    ) -> None:
        started = tmp_path / "started"
        code = START_STUBBORN + "time.sleep(600)"
        with contained(code, marker, is_isolated=is_isolated, arguments=(str(started),)) as process:
            wait_for(started)
            process.send_signal(signum)
            assert process.wait(60.0) == 130
        assert marker.none_left()

    def test_a_signal_at_any_moment_of_the_start(self, marker: Marked, is_isolated: bool) -> None:
        for delay_s in (0.0, 0.05, 0.1, 0.2, 0.4):
            with contained("import time; time.sleep(600)", marker, is_isolated=is_isolated) as process:
                time.sleep(delay_s)
                process.send_signal(signal.SIGINT)
                assert process.wait(60.0) != 0
            assert marker.none_left()

    def test_a_stubborn_command_is_killed_at_the_second_signal(
        self, marker: Marked, is_isolated: bool, tmp_path: Path
    ) -> None:
        started = tmp_path / "started"
        told = tmp_path / "told"
        code = (
            "import signal, sys, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: open(sys.argv[2], 'w').close())\n"
            "open(sys.argv[1], 'w').close()\n"
            "while True: time.sleep(600)"
        )
        with contained(code, marker, is_isolated=is_isolated, arguments=(str(started), str(told))) as process:
            wait_for(started)
            process.send_signal(signal.SIGINT)
            wait_for(told)  # or two signals may count as one
            process.send_signal(signal.SIGINT)
            assert process.wait(60.0) == 130
        assert marker.none_left()

    def test_even_a_killed_starter_leaves_nothing(self, marker: Marked, is_isolated: bool, tmp_path: Path) -> None:
        code = START_STUBBORN + "print(os.environ['HOME'], flush=True)\ntime.sleep(600)"
        started = str(tmp_path / "started")
        with contained(code, marker, is_isolated=is_isolated, arguments=(started,)) as process:
            assert process.stdout is not None
            folder = Path(process.stdout.readline().strip()).parent
            assert folder.is_dir()
            process.kill()
        assert marker.none_left()
        assert not folder.exists()

    def test_home_and_temporary_folder_are_private_and_vanish(self, marker: Marked, is_isolated: bool) -> None:
        code = "import os; print(os.environ['HOME']); open(os.environ['HOME'] + '/x', 'w').close()"
        with contained(code, marker, is_isolated=is_isolated) as process:
            home = Path(process.communicate(timeout=60.0)[0].strip())
        assert home != Path.home()
        assert not home.parent.exists()


def test_an_isolated_command_can_talk_to_itself_and_to_nobody_else(marker: Marked) -> None:
    code = (
        "import socket, sys\n"
        "with socket.create_server(('127.0.0.1', 0)) as s: socket.create_connection(s.getsockname()).close()\n"
        "try: socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "except OSError: print('alone')\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as host_service:
        port = str(host_service.getsockname()[1])
        with contained(code, marker, is_isolated=True, arguments=(port,)) as process:
            assert process.communicate(timeout=60.0)[0] == "alone\n"


def test_the_environment_leads_to_no_other_cluster(tmp_path: Path) -> None:
    inherited = {"RAY_ADDRESS": "192.0.2.1:6379", "RAY_AUTH_TOKEN_PATH": "/x", "RAY_AUTH_TOKEN": "shared", "PATH": "p"}
    first, second = (private_environment(tmp_path, inherited) for _ in range(2))
    assert "RAY_ADDRESS" not in first
    assert "RAY_AUTH_TOKEN_PATH" not in first
    assert first["RAY_AUTH_TOKEN"] not in ("shared", second["RAY_AUTH_TOKEN"])
    assert first["PATH"] == "p"
