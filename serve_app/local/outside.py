"""``likeness serve`` and ``likeness demo`` as the host sees them: choose the isolation and the port, then contain."""

# ruff: noqa: T201  (printing is what this module is for)

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from serve_app.exit_codes import ExitCode
from serve_app.local.contain import Isolation, best_isolation, run_contained
from serve_app.local.inside import Plan
from serve_app.local.relay import Address, PortError, reserve

INNER = Address(host="127.0.0.1", port=8000)
"""Where the application listens in a network of its own, where every port is free."""


def serve(config: Path, outer: Address, *, ready_timeout_s: float, log_file: str = "") -> int:
    """Serve a config on this machine until interrupted; its exit status."""
    isolation = best_isolation(wants_private_network=True)
    try:
        listening = reserve(outer)
    except PortError as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_INPUT
    with contextlib.closing(listening):
        is_relayed = isolation.is_network_private
        if not is_relayed:
            listening.close()  # it was free a moment ago; Serve itself will listen there
            _say_open(isolation)
        plan = Plan(
            config=str(config),
            inner=INNER if is_relayed else outer,
            outer=outer,
            listen_fd=listening.fileno() if is_relayed else None,
            ready_timeout_s=ready_timeout_s,
            client_arguments=None,
            log_file=log_file,
        )
        return _contain(plan, isolation, pass_fds=(listening.fileno(),) if is_relayed else ())


def demo(config: Path, client_arguments: Sequence[str], *, ready_timeout_s: float, log_file: str = "") -> int:
    """Start the application, send one request through the client, stop; the first failure's exit status."""
    isolation = best_isolation(wants_private_network=True)
    address = INNER if isolation.is_network_private else Address(host=INNER.host, port=_free_port(INNER.host))
    plan = Plan(
        config=str(config),
        inner=address,
        outer=address,
        listen_fd=None,
        ready_timeout_s=ready_timeout_s,
        client_arguments=tuple(client_arguments),
        log_file=log_file,
    )
    return _contain(plan, isolation, pass_fds=())


def _contain(plan: Plan, isolation: Isolation, *, pass_fds: Sequence[int]) -> int:
    command = [sys.executable, "-m", "serve_app.local.inside", plan.to_json()]
    return run_contained(command, isolation, environment=os.environ, pass_fds=pass_fds)


def _say_open(isolation: Isolation) -> None:
    print(
        "Note: this machine does not allow private networks, so Ray's internal ports are open on all its addresses, "
        "guarded by a token of this run.",
        file=sys.stderr,
    )


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
