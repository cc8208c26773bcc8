"""Who should draw next? Three policies on the same engine and the same crowds, measured and simulated.

    python -m benchmarks.scheduler measure --out benchmarks/results/scheduler_cpu.json
    python -m benchmarks.scheduler measure --profile flux-dev --device cuda --dtype bfloat16 \\
        --model-dir /tmp/flux-dev --sides 512:0.6,1024:0.4 --steps 2:0.7,8:0.3 --cfg 1 --loads 0.8,1.5 \\
        --seconds 240 --out benchmarks/results/scheduler_h200.json
    python -m benchmarks.scheduler simulate --measured FILE --requests 2000 --replicas 1,4,16,64 --out FILE
    python -m benchmarks.scheduler plot --measured FILE --simulated FILE --out docs/images/scheduler.png

``measure`` replays traces (:mod:`benchmarks.traces`) against a real engine in real time: Poisson arrivals and bursts,
at shares of what the device can do when it draws one picture after another. Every policy meets the same requests on
the same networks. ``simulate`` replays traces of the same kind through the same ledger and policies on simulated time
(:mod:`benchmarks.simulation.fleet`) with the cost model that was measured: the very crowds that were measured, on a
device as slow as it was then, to see whether the policies come out as measured; larger crowds; fleets. A picture counts
as good when it is there within three times what it takes on an idle device.

The second line on one H200, from its measured steps (158 ms at 1024², 56 ms at 512²): 41 s to write random weights of
full size where the folder has none, 6 s to load them, 10 s for Python and calibration. A request takes 0.45 s alone
(3.8 steps, its prompt and decoding), so that crowds of 35 requests fit into 240 s: 2 kinds of arrivals × (1.25 + 1) ×
35 × 0.45 s × 3 policies. Together 300 s; 256 s where the folder is full.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import engine_flags, traces
from benchmarks.scheduler.measure import measure
from benchmarks.scheduler.plot import plot
from benchmarks.scheduler.simulate import simulate
from benchmarks.traces import Mix

LOADS = (0.5, 0.8, 1.0, 1.5)

CPU_SIDES = {128: 0.4, 192: 0.2, 256: 0.4}
"""The embedded model draws at 256² at most; small, medium and large are a quarter of full size."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the three."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scheduler",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)

    real = commands.add_parser("measure")
    real.set_defaults(run=measure)
    engine_flags.add_flags(real, max_batch_tokens=8192)
    real.add_argument("--requests", type=int, default=40, help="a crowd, at most (default %(default)s)")
    real.add_argument(
        "--seconds", type=float, default=3600.0, help="for all crowds, which are made to fit (default %(default)g)"
    )
    defaults = Mix(sides_px=CPU_SIDES)
    real.add_argument("--sides", type=traces.weights(int), default=defaults.sides_px, metavar="V:W,…")
    real.add_argument("--steps", type=traces.weights(int), default=defaults.num_steps, metavar="V:W,…")
    real.add_argument("--cfg", type=traces.weights(float), default=defaults.cfg, metavar="V:W,…")

    made_up = commands.add_parser("simulate")
    made_up.set_defaults(run=simulate)
    basis = made_up.add_mutually_exclusive_group(required=True)
    basis.add_argument("--measured", type=Path, help="what `measure` wrote: cost model, mix, budget")
    basis.add_argument(
        "--full-size", type=Path, help="what benchmarks.full_size wrote: its step times make the cost model"
    )
    made_up.add_argument("--requests", type=int, default=1000, help="a crowd (default %(default)s)")
    made_up.add_argument("--per-replica", action="store_true", help="so many for every replica of a fleet")
    made_up.add_argument("--replicas", type=_numbers(int), default=(1, 4, 16, 64), metavar="N,…")

    drawn = commands.add_parser("plot")
    drawn.set_defaults(run=plot)
    drawn.add_argument("--measured", type=Path, required=True)
    drawn.add_argument("--simulated", type=Path, required=True)

    for command in (real, made_up):
        command.add_argument("--loads", type=_numbers(float), default=LOADS, metavar="X,…")
        command.add_argument("--seed", type=int, default=0)
    for command in (real, made_up, drawn):
        command.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    arguments.command = " ".join(["python -m benchmarks.scheduler", *argv])
    arguments.run(arguments)
    return 0


def _numbers(kind: type[int] | type[float]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(kind(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
