"""Which way the passes between matrix products are computed: as formulas, or as fused kernels where those work."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from engine.model import passes
from engine.model.passes import Passes

logger = logging.getLogger(__name__)

MAX_DIFFERENCE = 0.02
"""Relative, in bfloat16. The formulas round between their passes: they are off by up to 0.006 themselves."""

_is_fusing_allowed = True


def passes_for(x: Tensor) -> Passes:
    """Fused kernels for a GPU's inference; formulas, which have gradients and run everywhere, for all else."""
    if torch.compiler.is_compiling() or not (x.is_cuda and torch.is_inference_mode_enabled() and _is_fusing_allowed):
        return passes
    return fused_passes() or passes


@contextlib.contextmanager
def formulas_only() -> Iterator[None]:
    """No fused kernels in here, in the whole process: for comparisons."""
    global _is_fusing_allowed
    before, _is_fusing_allowed = _is_fusing_allowed, False
    try:
        yield
    finally:
        _is_fusing_allowed = before


@functools.cache
def fused_passes() -> Passes | None:
    """The fused kernels if they can be built here and do on this GPU what the formulas do; otherwise the log says why.

    Building takes Triton, which comes with torch's CUDA builds, and a C compiler, which images made for running often
    lack. Everything works without, with steps that take a quarter longer.
    """
    try:
        from engine.runtime import fused
        from engine.runtime.fused_check import largest_difference

        difference = largest_difference(fused, device="cuda", dtype=torch.bfloat16)
    except Exception as error:  # whatever a compiler or a driver may raise
        logger.warning("no fused kernels, steps take longer: %s: %s", type(error).__name__, error)
        return None
    if not difference <= MAX_DIFFERENCE:  # nor if it is no number
        logger.warning("no fused kernels, steps take longer: they differ from the formulas by %.3g", difference)
        return None
    logger.info("fused kernels are in use; they differ from the formulas by %.2g in bfloat16", difference)
    return fused
