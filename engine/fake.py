"""An engine without a network: deterministic pictures, chosen latency. For tests and for sizing a cluster.

Taking in, refusing, scheduling, deadlines and counting are those of the real engine (:mod:`engine.ledger`). With an
injected clock it simulates a device faster than time passes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import numpy as np

from engine.cost_meter import CostMeter
from engine.cost_model import CostModel, RequestWork
from engine.errors import EngineStoppedError
from engine.ledger import Entry, Ledger
from engine.profile import DrawnSize, ModelProfile
from engine.request import EngineEvent, EngineStats, Finished, ImageRequest, Queued, RgbImage, StageSeconds
from engine.scheduler import PolicyName, StepBudget, make_policy

UNLIMITED_TOKENS = 2**31
PREVIEW_STRIDE_PX = 8


class FakeEngine:
    """A step takes ``step_s`` and ``token_s`` a token, for everyone who takes part together.

    The picture is a colour gradient that depends on everything a real picture depends on (seed, prompts,
    reference, strength, steps, guidance, drawn size), so mixed-up requests show.

    Args:
        max_running: rows of one step; a request with cfg > 1 takes two.
        max_batch_tokens: tokens of one step.
        policy, max_waiting, max_queued_device_s: as in :class:`engine.config.EngineConfig`.
    """

    def __init__(
        self,
        profile: ModelProfile,
        *,
        step_s: float = 0.0,
        token_s: float = 0.0,
        max_running: int = 8,
        max_batch_tokens: int = UNLIMITED_TOKENS,
        policy: PolicyName = "shortest_remaining",
        max_waiting: int = 256,
        max_queued_device_s: float = 300.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._profile = profile
        self._cost = CostModel.simple(step_s=step_s, token_s=token_s)
        self._sleep = sleep
        self._clock = clock
        self._ledger: Ledger[None] = Ledger(
            policy=make_policy(policy, self._cost.step_seconds),
            budget=StepBudget(max_samples=max_running, max_tokens=max_batch_tokens),
            meter=CostMeter(self._cost),
            max_waiting=max_waiting,
            max_queued_device_s=max_queued_device_s,
            clock=clock,
        )

    @property
    def profile(self) -> ModelProfile:
        """The profile whose sizes and limits this engine obeys."""
        return self._profile

    @property
    def has_work(self) -> bool:
        """Whether any request is here."""
        return self._ledger.has_work

    def submit(self, request: ImageRequest) -> Queued:
        """See :meth:`engine.protocol.ImageEngine.submit`."""
        size = self._profile.check_request(request)
        work = RequestWork(
            num_rows=request.num_passes,
            num_tokens_per_row=self._profile.t5.max_tokens + size.num_tokens,
            num_steps=request.num_steps,
            num_pixels=size.width_px * size.height_px,
        )
        return self._ledger.submit(request, size, work)

    def cancel(self, request_id: str) -> bool:
        """See :meth:`engine.protocol.ImageEngine.cancel`."""
        return self._ledger.cancel(request_id)

    def step(self) -> list[EngineEvent]:
        """Sleep through one step of those who are chosen."""
        failed, entries = self._ledger.begin_step()
        events: list[EngineEvent] = [*failed]
        if not entries:
            return events
        step_s = self._cost.step_seconds([num for entry in entries for num in entry.work.row_tokens])
        self._sleep(step_s)
        previews = {entry.request.request_id: _preview(entry) for entry in entries if entry.is_preview_due}
        events += self._ledger.step_done(entries, step_s, previews)
        return [*events, *(self._finish(entry) for entry in entries if entry.is_drawn)]

    def warm_up(self) -> None:
        """Nothing to warm up, and costs are known."""

    def stats(self) -> EngineStats:
        """Counters and current load."""
        return self._ledger.stats()

    def check(self) -> None:
        """See :meth:`engine.protocol.ImageEngine.check`."""
        self._ledger.check()

    def close(self) -> None:
        """See :meth:`engine.protocol.ImageEngine.close`."""
        self._ledger.stop(EngineStoppedError("the engine is closed"))

    def _finish(self, entry: Entry[None]) -> Finished:
        self._ledger.finished(entry)
        started_s = entry.arrival_s if entry.started_s is None else entry.started_s
        return Finished(
            request_id=entry.request.request_id,
            image=picture(entry.request, entry.size),
            drawn_width_px=entry.size.width_px,
            drawn_height_px=entry.size.height_px,
            stages=StageSeconds(queue_s=started_s - entry.arrival_s, denoise_s=self._clock() - started_s),
            device_s=entry.device_s,
        )


def _preview(entry: Entry[None]) -> RgbImage:
    image: RgbImage = picture(entry.request, entry.size)[::PREVIEW_STRIDE_PX, ::PREVIEW_STRIDE_PX]
    return image


def picture(request: ImageRequest, drawn: DrawnSize) -> RgbImage:
    """The picture that :class:`FakeEngine` draws for a request: ``(height_px, width_px, 3)``."""
    reference_key = request.reference.key if request.reference else ""
    identity = (
        request.prompt,
        request.negative_prompt if request.cfg > 1.0 else "",
        reference_key if request.ip_scale > 0.0 else "",
        request.seed,
        request.ip_scale,
        request.cfg,
        request.guidance,
        request.num_steps,
        drawn.width_px,
        drawn.height_px,
    )
    digest = hashlib.sha256(repr(identity).encode()).digest()
    corners = np.frombuffer(digest[:12], dtype=np.uint8).reshape(2, 2, 3).astype(np.float32)
    y = np.linspace(0.0, 1.0, request.height_px, dtype=np.float32)[:, None, None]
    x = np.linspace(0.0, 1.0, request.width_px, dtype=np.float32)[None, :, None]
    top = corners[0, 0] * (1 - x) + corners[0, 1] * x
    bottom = corners[1, 0] * (1 - x) + corners[1, 1] * x
    image: RgbImage = (top * (1 - y) + bottom * y).astype(np.uint8)
    return image
