"""How one engine process runs its model. Chosen by the operator, fixed for the life of the process."""

from __future__ import annotations

import dataclasses
from typing import Literal

from engine.memory import MemoryProfileName
from engine.profile import ModelProfile
from engine.scheduler import PolicyName

DeviceName = Literal["cpu", "cuda"]
DtypeName = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Per-process settings of an engine.

    Attributes:
        profile: the model.
        model_dir: folder with the profile's files.
        device: where the networks run.
        dtype: precision of weights and activations. Noise, schedule and the Euler update are always float32.
        memory: how the model is made to fit the device; see :data:`engine.memory.MEMORY_PROFILES`.
        cpu_threads: threads of a CPU device; None leaves it to torch.
        max_batch_samples: forward-pass rows of a step; a request with cfg > 1 takes two.
        max_batch_tokens: image and text tokens of a step, over all rows. One request larger than this runs alone.
        max_recorded_shapes: shapes of a step whose pass is kept as a CUDA graph, those used last; 0 records none. Only
            steps of at most one row of native size are; together they need its activations once more. No effect on a
            CPU.
        policy: who takes part in a step; see :mod:`engine.scheduler`.
        max_waiting: requests that may wait for their first step; more are refused.
        max_queued_device_s: predicted seconds of work that may be here, waiting and running; more is refused. As long
            as callers usually wait at most: work that nobody waits for any more is not worth taking in.
        text_cache_bytes, image_cache_bytes: budgets of the caches of text embeddings and of image prompts.
    """

    profile: ModelProfile
    model_dir: str
    device: DeviceName = "cpu"
    dtype: DtypeName = "float32"
    memory: MemoryProfileName = "resident"
    cpu_threads: int | None = None
    max_batch_samples: int = 8
    max_batch_tokens: int = 8192
    max_recorded_shapes: int = 12
    policy: PolicyName = "shortest_remaining"
    max_waiting: int = 256
    max_queued_device_s: float = 300.0
    text_cache_bytes: int = 256 * 2**20
    image_cache_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        for name in ("max_batch_samples", "max_batch_tokens", "max_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.cpu_threads is not None and self.cpu_threads < 1:
            raise ValueError(f"cpu_threads must be at least 1, got {self.cpu_threads}")
        for name in ("max_recorded_shapes", "text_cache_bytes", "image_cache_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.max_queued_device_s <= 0.0:
            raise ValueError(f"max_queued_device_s must be above 0, got {self.max_queued_device_s}")
        if self.max_batch_samples < 2:
            raise ValueError("max_batch_samples must be at least 2: a request with cfg > 1 takes two rows")
