"""How a drawing goes: the engine's events in the service's words, and how long it still takes."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from typing import Final

from engine.request import Queued, RgbImage, StepProgress
from serve_app.encode import encode_picture
from serve_app.stages import DrawQueued, DrawStep, OnDrawEvent, PictureEncoding

PREVIEW_ENCODING: Final = PictureEncoding(format="jpeg", quality=80)
"""An eighth of the picture's sides; 128×128 of a photo: 7 kB, and 0.5 ms of one CPU thread to write."""

NUM_RECENT: Final = 8
"""Steps that the pace is taken from: it changes with every request that joins or leaves the batch."""


class DrawProgress:
    """Hears what an engine says of one request, and passes it on.

    Args:
        on_event: who wants to know.
        position: the request's place in the engine; see :class:`serve_app.stages.DrawQueued`.
    """

    def __init__(self, on_event: OnDrawEvent, *, position: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._on_event = on_event
        self._position = position
        self._clock = clock
        self._predicted_device_s = 0.0
        self._taken_s: collections.deque[float] = collections.deque(maxlen=NUM_RECENT + 1)

    def __call__(self, event: Queued | StepProgress) -> None:
        """See :data:`engine.loop.ProgressCallback`."""
        match event:
            case Queued():
                self._predicted_device_s = event.predicted_device_s
                queued = DrawQueued(
                    position=self._position,
                    predicted_wait_s=event.predicted_wait_s,
                    predicted_device_s=event.predicted_device_s,
                )
                self._on_event(queued)
            case StepProgress():
                step = DrawStep(
                    step=event.step,
                    num_steps=event.num_steps,
                    remaining_s=self._remaining_s(event),
                    preview=None if event.preview is None else _file(event.preview),
                )
                self._on_event(step)

    def _remaining_s(self, event: StepProgress) -> float:
        """At the pace of the latest steps; at the first one, at the predicted pace."""
        self._taken_s.append(self._clock())
        num_gaps = len(self._taken_s) - 1
        if num_gaps:
            step_s = (self._taken_s[-1] - self._taken_s[0]) / num_gaps
        else:
            step_s = self._predicted_device_s / event.num_steps
        return step_s * (event.num_steps - event.step)


def _file(preview: RgbImage) -> bytes:
    return encode_picture(preview, PREVIEW_ENCODING)
