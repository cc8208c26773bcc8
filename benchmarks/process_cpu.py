"""Processor time by process of a local Ray (Linux): what a request costs, also where others keep the machine busy."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Mapping
from pathlib import Path

_REPLICA = re.compile(r"ray::ServeReplica:[^:]+:(\w+)")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> Mapping[str, float]:
    """Seconds of processor time so far: replicas by deployment, Serve's proxy, this process, and the rest of Ray.

    In a process namespace of its own, as :mod:`serve_app.local.contain` makes it, this is all there is.
    """
    seconds: dict[str, float] = collections.defaultdict(float)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        user, system = int(after_name[11]), int(after_name[12])  # proc(5): fields 14 and 15
        seconds[_label(title, int(folder.name))] += (user + system) / _TICKS_PER_S
    return seconds


def _label(title: str, pid: int) -> str:
    if pid == os.getpid():
        return "client"
    if (replica := _REPLICA.match(title)) is not None:
        return replica[1]
    if title.startswith("ray::ProxyActor"):
        return "proxy"
    return "rest of Ray"


def spent_ms(before: Mapping[str, float], after: Mapping[str, float], num_requests: int) -> dict[str, float]:
    """Milliseconds a request, by process; what spent next to nothing is left out."""
    spent = {name: 1e3 * (after[name] - before.get(name, 0.0)) / num_requests for name in after}
    return {name: round(ms, 2) for name, ms in sorted(spent.items(), key=lambda item: -item[1]) if ms >= 0.05}
