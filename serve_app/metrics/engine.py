"""What a Flux replica counts: what its engine did, whoever for, and how its device is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine.protocol import ImageEngine
from engine.request import EngineEvent
from engine.wrapped import WrappedEngine
from serve_app.metrics import table
from serve_app.metrics.metric import Metric
from serve_app.metrics.recorder import Recorder

DeviceReadings = Mapping[Metric, float]
"""Gauges of :data:`serve_app.metrics.table.DEVICE_LABELS` and what they are now."""


class MeteredEngine(WrappedEngine):
    """An engine that counts what goes through it; otherwise the engine it is given.

    Args:
        engine: does the work.
        device_name: what it runs on.
    """

    def __init__(self, engine: ImageEngine, recorder: Recorder, device_name: str) -> None:
        super().__init__(engine)
        self._recorder = recorder
        self._device_name = device_name
        recorder.refresh_with(self._refresh)

    def step(self) -> list[EngineEvent]:
        """One step; how many requests were in it."""
        before = self._engine.stats()
        events = self._engine.step()
        after = self._engine.stats()
        num_passes = after.num_steps - before.num_steps  # more than one where memory was too short for all at once
        for _ in range(num_passes):
            num_requests = (after.num_sample_steps - before.num_sample_steps) / num_passes
            self._recorder.observe(table.BATCH_SIZE, num_requests)
        return events

    def _refresh(self) -> None:
        """Let every report hold what the engine did by then, also for requests whose results nobody took."""
        stats, recorder = self._engine.stats(), self._recorder
        for outcome in ("finished", "failed", "cancelled", "expired", "refused"):
            recorder.follow(table.ENGINE_ENDED, outcome, total=getattr(stats, f"num_{outcome}"))
        for stage in ("text", "vision", "denoise", "decode"):
            recorder.follow(table.DEVICE_SECONDS, self._device_name, stage, total=getattr(stats, f"{stage}_s"))
        for cache, lookups in (("text", stats.text_cache), ("image", stats.image_cache)):
            recorder.follow(table.CACHE_LOOKUPS, cache, "hit", total=lookups.num_hits)
            recorder.follow(table.CACHE_LOOKUPS, cache, "miss", total=lookups.num_misses)
            recorder.set(table.CACHE_BYTES, lookups.size_bytes, cache)
        recorder.follow(table.ENGINE_STEPS, total=stats.num_steps)
        recorder.follow(table.ENGINE_SAMPLE_STEPS, total=stats.num_sample_steps)
        recorder.follow(table.ENGINE_WASTED_STEPS, total=stats.num_wasted_steps)
        recorder.follow(table.ENGINE_TOKENS, total=stats.num_step_tokens)
        recorder.follow(table.ENGINE_TOKEN_ROOM, total=stats.num_steps * stats.max_step_tokens)
        recorder.set(table.ENGINE_WAITING, stats.num_waiting)
        recorder.set(table.ENGINE_RUNNING, stats.num_running)
        recorder.set(table.QUEUED_SECONDS, stats.queued_device_s)
        if stats.cost_model_error is not None:
            recorder.set(table.COST_MODEL_ERROR, stats.cost_model_error, recorder.source)


def follow_device(recorder: Recorder, device_name: str, read: Callable[[], DeviceReadings]) -> None:
    """Let every report hold how the device is. The replica's name keeps devices of one kind apart."""

    def refresh() -> None:
        for metric, value in read().items():
            recorder.set(metric, value, device_name, recorder.source)

    recorder.refresh_with(refresh)
