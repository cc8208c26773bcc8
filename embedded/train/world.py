"""Where training runs: one device, or one process a GPU; and how long it may take."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

SYNC_EVERY_STEPS = 10
"""How often processes agree on the clock. Between two looks the learning rate stands still, on all of them alike."""

SHOW_EVERY_STEPS = 200
"""How often a stage says how it goes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """This process among ``size`` of them; ``rank`` 0 writes files and speaks."""

    rank: int
    size: int
    device: torch.device

    @staticmethod
    def open(device: str | None = None) -> World:
        """Join the processes that ``torchrun`` started, or be alone. ``device``: ``cpu`` or ``cuda``; None chooses."""
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        place = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(place)
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True  # few shapes, many times
        if size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        return World(rank=rank, size=size, device=place)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    @property
    def is_cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device.type == "cuda"

    @property
    def alone(self) -> World:
        """This process without the others, for what only one of them does: waiting for the rest would never end."""
        return dataclasses.replace(self, rank=0, size=1)

    def autocast(self) -> torch.autocast:
        """bfloat16 for what can take it on a GPU; processors are faster in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_cuda)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def average(self, flat: Tensor) -> None:
        """Mean over processes, in place."""
        if self.size > 1:
            dist.all_reduce(flat)
            flat.div_(self.size)

    def gathered(self, rows: Tensor) -> Tensor:
        """Rows of all processes, (size · n, …), in rank order; every process brings as many."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def agreed(self, values: Sequence[float]) -> list[float]:
        """The first process's numbers."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return [float(value) for value in tensor]

    def generator(self, seed: int) -> torch.Generator:
        """Random numbers on the device, different on every process."""
        return torch.Generator(self.device).manual_seed(seed * 1009 + self.rank)

    def say(self, message: str) -> None:
        """One line of progress from the first process."""
        if self.is_first:
            sys.stderr.write(f"[{time.strftime('%H:%M:%S')}] {message}\n")
            sys.stderr.flush()


class Clock:
    """How far a stage is, in seconds: learning rates follow it, and it says when to stop, to all processes alike.

    ``max_steps`` ends a stage earlier and makes its progress a matter of steps: for tests, which must not depend on
    the machine's speed. ``pause_s`` is how long this process may go on, whatever is left of the stage.
    """

    def __init__(
        self,
        world: World,
        seconds: float,
        *,
        max_steps: int | None = None,
        done_s: float = 0.0,
        pause_s: float | None = None,
    ) -> None:
        self._world = world
        self._seconds = seconds
        self._max_steps = max_steps
        self._started_s = time.monotonic() - done_s
        self._pause_at_s = math.inf if pause_s is None else done_s + pause_s
        self._progress = 0.0
        self.is_paused = False
        """As of the last look at :meth:`progress`, on all processes alike."""

    @property
    def elapsed_s(self) -> float:
        """Seconds of this stage, those of earlier runs of it included."""
        return time.monotonic() - self._started_s

    def progress(self, step: int) -> float:
        """0 at the start, 1 when it is time to stop."""
        if self._max_steps is not None:
            return min(1.0, step / self._max_steps)
        if step % SYNC_EVERY_STEPS == 0 or self._progress >= 1.0:
            elapsed_s = self.elapsed_s
            self._progress, is_paused = self._world.agreed(
                [min(1.0, elapsed_s / self._seconds), float(elapsed_s >= self._pause_at_s)]
            )
            self.is_paused = is_paused > 0
        return self._progress


def warm_up_and_cosine(step: int, progress: float, *, warm_up_steps: int, floor: float = 0.02) -> float:
    """A factor for the learning rate: up in a line over the first steps, down along a half cosine with progress."""
    up = min(1.0, (step + 1) / warm_up_steps)
    down = 0.5 * (1 + float(torch.cos(torch.tensor(progress * torch.pi))))
    return up * (floor + (1 - floor) * down)
