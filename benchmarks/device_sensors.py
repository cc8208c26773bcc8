"""Do an NVIDIA device's sensors say what is going on? The service's own reader, idle and under load, on the device.

    python -m benchmarks.device_sensors --out benchmarks/results/device_sensors_h200.json

Reads :class:`serve_app.metrics.cuda.CudaReader` while the device is idle, and while it multiplies matrices with some
memory held; then checks the readings: in range, the load to be seen in each of them, and the same as ``nvidia-smi``
says where there is one (another road to the same driver, so units and scales are compared). Prints one line a check and
ends with status 1 where one fails. Needs ``nvidia-ml-py`` (the extra ``gpu``). On one GPU: 10 s, and those that Python
takes to import torch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.progress import tell
from serve_app.metrics import table
from serve_app.metrics.cuda import CudaReader

HELD_BYTES = 4 * 2**30
MATRIX_SIDE = 8192
READ_EVERY_S = 0.25

RANGES: Mapping[str, tuple[float, float]] = {
    table.TEMPERATURE.name: (10.0, 100.0),
    table.UTILISATION.name: (0.0, 1.0),
    table.POWER.name: (5.0, 1500.0),
    table.MEMORY_USED.name: (0.0, 1e12),
    table.MEMORY_PEAK.name: (0.0, 1e12),
    table.MEMORY_TOTAL.name: (1e9, 1e12),
}
"""What a GPU of these years can say at all: degrees Celsius, a share, watts, bytes."""

SMI_FIELDS: Mapping[str, tuple[str, float, float]] = {
    # metric: nvidia-smi's name, its unit in ours, and by how much the two may differ (read one after the other)
    table.TEMPERATURE.name: ("temperature.gpu", 1.0, 5.0),
    table.UTILISATION.name: ("utilization.gpu", 0.01, 0.25),
    table.POWER.name: ("power.draw", 1.0, 150.0),
    table.MEMORY_TOTAL.name: ("memory.total", 2.0**20, 4e9),  # the driver keeps some to itself
}

Readings = Mapping[str, float]


def checks(idle: Sequence[Readings], loaded: Sequence[Readings], smi: Readings | None) -> dict[str, bool]:
    """Every check by what it says.

    Args:
        idle, loaded: readings by metric name; the last of ``loaded`` is of the same moment as ``smi``.
        smi: what nvidia-smi says, in our units; None where there is none.
    """
    found = {"nvidia-smi, where there is one, answers": smi is None or bool(smi)}
    for name, (low, high) in RANGES.items():
        found[f"{name} is told"] = all(name in readings for readings in (*idle, *loaded))
        told = [readings[name] for readings in (*idle, *loaded) if name in readings]
        found[f"{name} is between {low:g} and {high:g}"] = all(low <= value <= high for value in told)
    idle_medians, loaded_medians = _medians(idle), _medians(loaded)

    def rises_by(name: str, least: float) -> bool:
        return loaded_medians.get(name, 0.0) - idle_medians.get(name, 0.0) >= least

    found["a kernel runs most of the time under load"] = loaded_medians.get(table.UTILISATION.name, 0.0) >= 0.8
    found["utilisation rises under load"] = rises_by(table.UTILISATION.name, 0.3)
    found["power rises under load"] = rises_by(table.POWER.name, 50.0)
    found["the device does not get colder under load"] = rises_by(table.TEMPERATURE.name, 0.0)
    found["memory that is held is seen"] = rises_by(table.MEMORY_USED.name, HELD_BYTES)
    found["memory: used ≤ peak ≤ total"] = all(
        one[table.MEMORY_USED.name] <= one[table.MEMORY_PEAK.name] <= one[table.MEMORY_TOTAL.name]
        for one in (*idle, *loaded)
    )
    for name, value in (smi or {}).items():
        difference = abs(value - loaded[-1].get(name, float("inf")))
        found[f"{name} is what nvidia-smi says"] = difference <= SMI_FIELDS[name][2]
    return found


def _medians(readings: Sequence[Readings]) -> dict[str, float]:
    names = set.intersection(*(set(one) for one in readings))
    return {name: statistics.median(one[name] for one in readings) for name in names}


def readings_for(seconds: float, read: Callable[[], Readings], work: Callable[[], object]) -> list[Readings]:
    """Read now and then while working; the first second is left out, in which counters and clocks follow."""
    started_s = time.monotonic()
    readings: list[Readings] = []
    due_s = started_s + 1.0
    while (now_s := time.monotonic()) < started_s + 1.0 + seconds:
        work()
        if now_s >= due_s:
            readings.append(read())
            due_s = now_s + READ_EVERY_S
    return readings


def ask_smi(device_uuid: str, work: Callable[[], object]) -> dict[str, float] | None:
    """The same quantities from nvidia-smi while the device works, in our units; None where there is no such program."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    fields = ",".join(field for field, _, _ in SMI_FIELDS.values())
    command = [program, f"--id={device_uuid}", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            work()
        assert process.stdout is not None
        answer = process.stdout.read()
    return from_smi(answer)


def from_smi(answer: str) -> dict[str, float]:
    """One line of numbers in our units; what is no number (``[N/A]``) is left out."""
    found: dict[str, float] = {}
    for (name, (_, unit, _)), text in zip(SMI_FIELDS.items(), answer.strip().split(","), strict=False):
        with contextlib.suppress(ValueError):
            found[name] = float(text) * unit
    return found


def measure(seconds: float) -> dict[str, Any]:
    """Idle, then loaded, then the checks."""
    reader = CudaReader(torch.cuda)

    def read() -> Readings:
        return {metric.name: value for metric, value in reader().items()}

    tell("idle")
    torch.cuda.synchronize()
    idle = readings_for(seconds, read, lambda: time.sleep(0.02))
    tell("under load")
    held = torch.zeros(HELD_BYTES, dtype=torch.uint8, device="cuda")
    matrix = torch.randn(MATRIX_SIDE, MATRIX_SIDE, device="cuda", dtype=torch.bfloat16)

    def work() -> None:
        for _ in range(20):
            torch.mm(matrix, matrix)
        torch.cuda.synchronize()

    loaded = readings_for(seconds, read, work)
    smi = ask_smi(f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}", work)
    loaded.append(read())
    del held
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "checks": checks(idle, loaded, smi),
        "idle": _medians(idle),
        "loaded": _medians(loaded),
        "nvidia_smi": smi,
        "readings": {"idle": idle, "loaded": loaded},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="idle, and as long loaded (default %(default)g)")
    parser.add_argument("--out", type=Path, required=True)
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    result = measure(arguments.seconds)
    command = " ".join(["python -m benchmarks.device_sensors", *argv])
    arguments.out.write_text(json.dumps({"command": command, **result}, indent=1, ensure_ascii=False) + "\n")
    for name, is_met in result["checks"].items():
        print(f"{'ok    ' if is_met else 'FAILED'}  {name}")
    return int(not all(result["checks"].values()))


if __name__ == "__main__":
    sys.exit(main())
