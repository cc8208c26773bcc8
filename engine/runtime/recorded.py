"""Forward passes recorded as CUDA graphs, for shapes that come again.

A pass is about a thousand kernels. At 512² a GPU is done with them before a processor has handed them over one by one;
a recording is handed over at once. It reads from and writes to memory of its own, so every input is copied in and the
result out: nothing of a request stays behind but what the next one overwrites before anything reads it.
"""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.model.image_prompt import ImagePrompt
from engine.model.packing import Packing

logger = logging.getLogger(__name__)

NUM_PASSES_BEFORE = 8
"""A shape is recorded when it comes so many times: recording takes as long as a few passes, and most mixes of sizes
that happen to meet in a step part again soon."""

MAX_SHAPES_COUNTED = 1024


class Forward(Protocol):
    """:meth:`engine.model.flux.Flux.forward`: image tokens, their ids, text, sigmas, pooled text, guidance."""

    def __call__(self, *inputs: Tensor, packing: Packing, image_prompt: ImagePrompt) -> Tensor:
        """A velocity laid out as the image tokens."""
        ...


Run = Callable[[], Tensor]
Recorder = Callable[[Run], Run]
"""Takes what is to be recorded; gives what repeats it on the same memory. The result is overwritten by the next."""


class RecordedPasses:
    """Stands before a transformer's forward pass. One thread at a time."""

    def __init__(self, forward: Forward, *, max_recordings: int, max_tokens: int, recorder: Recorder) -> None:
        """Keeps ``max_recordings``, those used last, none of them longer than ``max_tokens`` in all its rows."""
        self._forward = forward
        self._max = max_recordings
        self._max_tokens = max_tokens
        self._recorder = recorder
        self._recordings: collections.OrderedDict[_Shape, _Recording] = collections.OrderedDict()
        self._counts: collections.Counter[_Shape] = collections.Counter()

    @property
    def num_recordings(self) -> int:
        """Shapes that are recorded now."""
        return len(self._recordings)

    def __call__(self, *inputs: Tensor, packing: Packing, image_prompt: ImagePrompt) -> Tensor:
        """See :class:`Forward`. The result is the caller's own."""
        flat = _flat(inputs, image_prompt)
        shape = _shape(flat, packing)
        recording = self._recordings.get(shape)
        if recording is None and self._is_worth_recording(shape):
            recording = self._record(shape, flat, packing)
        if recording is None:
            return self._forward(*inputs, packing=packing, image_prompt=image_prompt)
        self._recordings.move_to_end(shape)
        return recording.repeat(flat)

    def record(self, *inputs: Tensor, packing: Packing, image_prompt: ImagePrompt) -> None:
        """Record this shape now, since it is known to come again."""
        flat = _flat(inputs, image_prompt)
        shape = _shape(flat, packing)
        if self._may_be_recorded(shape) and shape not in self._recordings:
            self._record(shape, flat, packing)

    def _may_be_recorded(self, shape: _Shape) -> bool:
        packing, _ = shape
        return self._max > 0 and sum(packing.num_joint) <= self._max_tokens

    def _is_worth_recording(self, shape: _Shape) -> bool:
        if not self._may_be_recorded(shape):
            return False
        if len(self._counts) >= MAX_SHAPES_COUNTED:
            self._counts.clear()
        self._counts[shape] += 1
        return self._counts[shape] >= NUM_PASSES_BEFORE

    def _record(self, shape: _Shape, flat: Sequence[Tensor], packing: Packing) -> _Recording | None:
        del self._counts[shape]
        while len(self._recordings) >= self._max:
            self._recordings.popitem(last=False)
        try:
            recording = _Recording(self._forward, flat, packing, self._recorder)
        except RuntimeError as error:  # out of memory is one, too
            # Everything works without. Trying again at every step would not.
            logger.warning("no recorded passes any more, small pictures take longer: %s", error)
            self._max = 0
            self._recordings.clear()
            return None
        self._recordings[shape] = recording
        return recording


_Shape = tuple[Packing, tuple[torch.Size, ...]]


def _flat(inputs: Sequence[Tensor], image_prompt: ImagePrompt) -> tuple[Tensor, ...]:
    return (*inputs, image_prompt.keys, image_prompt.values, image_prompt.scale)


def _shape(flat: Sequence[Tensor], packing: Packing) -> _Shape:
    return packing, tuple(tensor.shape for tensor in flat)


class _Recording:
    """One shape's pass, with its memory."""

    def __init__(self, forward: Forward, flat: Sequence[Tensor], packing: Packing, recorder: Recorder) -> None:
        self._inputs = [tensor.clone() for tensor in flat]
        *inputs, keys, values, scale = self._inputs
        prompt = ImagePrompt(keys=keys, values=values, scale=scale)
        self._packing = packing  # only kept: the recorded kernels read its maps of tokens
        self._run = recorder(lambda: forward(*inputs, packing=packing, image_prompt=prompt))

    def repeat(self, flat: Sequence[Tensor]) -> Tensor:
        """The pass on other numbers."""
        torch._foreach_copy_(self._inputs, list(flat))
        return self._run().clone()


class CudaGraphs:
    """Records CUDA graphs; all share one pool of memory, since no two run at once and none leaves anything in it."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Run) -> Run:
        """See :data:`Recorder`.

        Raises:
            RuntimeError: the pass does what can't be recorded, or there is not enough memory.
        """
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()  # what is made once, by libraries and by the packing, must be there before
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process may go on using the device.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            out = run()

        def repeat() -> Tensor:
            graph.replay()
            return out

        return repeat
