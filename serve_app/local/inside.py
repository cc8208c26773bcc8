"""What runs inside a container: the server until it is stopped, or the server, one request through the client, end."""

# ruff: noqa: T201  (printing is what this module is for)

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from serve_app.exit_codes import ExitCode
from serve_app.local.contain import PRIVATE_FOLDER_ENV
from serve_app.local.relay import Address, PortError, start_relay
from serve_app.local.server import (
    ANSI_COLOUR,
    ConfigRefusedError,
    LocalServer,
    ServerFailedError,
    in_words,
    local_server,
)
from serve_app.progress import ProgressLine


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to do inside, as the outside decided it. Travels as one JSON argument.

    Attributes:
        config: the Serve config to deploy.
        inner: where the application listens.
        outer: where people reach it; differs from ``inner`` where a relay stands between.
        listen_fd: the host's socket to relay from; None without a relay.
        ready_timeout_s: how long starting may take.
        client_arguments: a request to send through the client, then stop; None serves until stopped.
        log_file: where Ray's, Serve's and the replicas' lines go; empty for a private file that vanishes.
    """

    config: str
    inner: Address
    outer: Address
    listen_fd: int | None
    ready_timeout_s: float
    client_arguments: tuple[str, ...] | None
    log_file: str

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        fields = json.loads(text)
        arguments = fields["client_arguments"]
        fields["client_arguments"] = None if arguments is None else tuple(arguments)
        return cls(**{**fields, "inner": Address(**fields["inner"]), "outer": Address(**fields["outer"])})


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m serve_app.local.inside PLAN``, started by :mod:`serve_app.local.outside`."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.local.inside", description=__doc__)
    parser.add_argument("plan", type=Plan.from_json)
    plan: Plan = parser.parse_args(argv).plan
    signal.signal(signal.SIGTERM, _stop)
    try:
        return carry_out(plan, log_file=Path(plan.log_file or Path(os.environ[PRIVATE_FOLDER_ENV]) / "serve.log"))
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


def carry_out(plan: Plan, *, log_file: Path) -> int:
    """Start, wait, then serve or send the one request. Shows the log where anything goes wrong."""
    with local_server(Path(plan.config), plan.inner, log_file) as server:
        try:
            started_s = time.monotonic()
            with ProgressLine(sys.stderr, "reading the config") as line:
                server.wait_until_ready(line.update, timeout_s=plan.ready_timeout_s)
            print(f"Ready after {time.monotonic() - started_s:.1f} s.", file=sys.stderr, flush=True)
            if plan.client_arguments is not None:
                return _send_one(plan.client_arguments, plan.inner)
            if plan.listen_fd is not None:
                start_relay(socket.socket(fileno=plan.listen_fd), plan.outer, plan.inner)
            _serve(server, plan)
        except ConfigRefusedError as error:
            print(f"{plan.config} can't be deployed:\n{error}", file=sys.stderr)
            return ExitCode.BAD_INPUT
        except PortError as error:
            print(error, file=sys.stderr)
            return ExitCode.BAD_INPUT
        except ServerFailedError as error:
            why = "\n".join(error.causes) or f"{server.log_tail()}\n(the end of its log)"
            whole = f" The whole log: {plan.log_file}" if plan.log_file else ""
            print(f"\n{ANSI_COLOUR.sub('', why)}\n\nlikeness: {error}; see above.{whole}", file=sys.stderr)
            return ExitCode.SERVER_ERROR
    return ExitCode.OK


def _send_one(client_arguments: Sequence[str], address: Address) -> int:
    shown = shlex.join(["likeness", *client_arguments])
    print(f"$ {shown}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "serve_app.cli", *client_arguments, "--url", str(address)]
    return subprocess.run(command, check=False).returncode  # noqa: S603


def _serve(server: LocalServer, plan: Plan) -> None:
    """Until the process is stopped. Raises ServerFailedError where the cluster process ends before."""
    print(f"Serving on {plan.outer} (try {plan.outer}/docs). Ctrl-C stops it.", file=sys.stderr, flush=True)
    while True:
        server.check_alive()
        for event in server.new_events():
            print(f"Now {in_words(event)}.", file=sys.stderr, flush=True)
        time.sleep(1.0)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
