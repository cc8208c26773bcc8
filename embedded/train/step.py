"""One training step as two recorded CUDA graphs, with the exchange between processes in the middle.

Small networks are bound by launches, not by arithmetic: a step here is about two thousand kernels, and a processor
that hands them over one by one takes longer than the GPU takes to run them. A graph is handed over once. What is
recorded must decide nothing on the host: no number is read back, no shape is drawn (``tests/test_embedded_train.py``
holds that on any machine).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from embedded.train.muon import Optimizer
from embedded.train.networks import Average
from embedded.train.world import SHOW_EVERY_STEPS, Clock, World, warm_up_and_cosine

EAGER_STEPS = 5
"""Steps that run as written before anything is recorded: compilers compile, optimisers make their state."""

Losses = Callable[[], tuple[Tensor, Tensor]]
"""Draws a batch and computes: the loss, and (k,) numbers to show."""


class TrainingStep:
    """Gradients, their mean over processes, one update of parameters and their average."""

    def __init__(
        self,
        world: World,
        losses: Losses,
        optimizer: Optimizer,
        average: Average[Any] | None,
        *,
        num_shown: int,
        generators: Sequence[torch.Generator],
    ) -> None:
        """``generators``: all that ``losses`` draws from."""
        self._world, self._losses, self._optimizer, self._average = world, losses, optimizer, average
        self._parameters = optimizer.parameters
        sizes = [parameter.numel() for parameter in self._parameters]
        self._flat = torch.zeros(sum(sizes), device=world.device)
        pieces = self._flat.split(sizes)
        self._places = [piece.view_as(parameter) for parameter, piece in zip(self._parameters, pieces, strict=True)]
        for parameter, place in zip(self._parameters, self._places, strict=True):
            parameter.grad = place
        self._shown = torch.zeros(num_shown, device=world.device)
        self._num_shown = 0
        self._compute = _Recorded(self._gradients, generators, is_recorded=world.is_cuda)
        self._apply = _Recorded(self._update, (), is_recorded=world.is_cuda)

    def __call__(self, learning_rate: float) -> None:
        """Take one step."""
        self._compute()
        self._world.average(self._flat)
        self._optimizer.set_learning_rate(learning_rate)
        self._apply()
        self._num_shown += 1

    def shown(self) -> list[float]:
        """Means of the numbers to show since the last call. Waits for the device.

        Raises:
            FloatingPointError: one of them was not finite, so the networks are lost.
        """
        means = [float(x) / max(1, self._num_shown) for x in self._shown]
        self._shown.zero_()
        self._num_shown = 0
        if not all(map(math.isfinite, means)):
            raise FloatingPointError(f"the losses became {means}; lower the learning rate")
        return means

    def _gradients(self) -> None:
        loss, shown = self._losses()
        found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        pairs = [(place, grad) for place, grad in zip(self._places, found, strict=True) if grad is not None]
        torch._foreach_copy_([place for place, _ in pairs], [grad for _, grad in pairs])
        self._shown += shown.detach()

    def _update(self) -> None:
        self._optimizer.step()
        if self._average is not None:
            self._average.update()


def take_steps(
    world: World,
    clock: Clock,
    take_step: TrainingStep,
    *,
    stage: str,
    names: Sequence[str],
    learning_rate: float,
    warm_up_steps: int,
    floor: float = 0.02,
    prepare: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Step until the clock says stop, and say now and then how it goes.

    Args:
        names: of the numbers to show.
        floor: see :func:`embedded.train.world.warm_up_and_cosine`.
        prepare: called before every step, and no part of what is recorded.

    Returns:
        ``steps``, ``seconds``, and by name the means since they were said last.
    """
    step, shown = 0, [float("nan")] * len(names)
    while (progress := clock.progress(step)) < 1.0:
        if prepare is not None:
            prepare()
        take_step(learning_rate * warm_up_and_cosine(step, progress, warm_up_steps=warm_up_steps, floor=floor))
        step += 1
        if step % SHOW_EVERY_STEPS == 0:
            shown = take_step.shown()
            words = ", ".join(f"{name} {value:.4f}" for name, value in zip(names, shown, strict=True))
            world.say(f"{stage} step {step}, {progress:.0%}, {clock.elapsed_s:.0f} s: {words}")
    if step % SHOW_EVERY_STEPS:
        shown = take_step.shown()
    values = {name: round(value, 6) for name, value in zip(names, shown, strict=True)}
    return {"steps": step, "seconds": round(clock.elapsed_s, 1)} | values


class _Recorded:
    """Work that is run as written a few times, then recorded, and from then on replayed."""

    def __init__(self, work: Callable[[], None], generators: Sequence[torch.Generator], *, is_recorded: bool) -> None:
        self._work, self._generators, self._is_recorded = work, generators, is_recorded
        self._num_calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        self._num_calls += 1
        if not self._is_recorded or self._num_calls <= EAGER_STEPS:
            self._work()
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            for generator in self._generators:
                self._graph.register_generator_state(generator)
            # Other threads (NCCL's watchdog) may use the device meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._work()
        self._graph.replay()
