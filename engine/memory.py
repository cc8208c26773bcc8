"""Ways to make a model fit a device, as data. No torch: the choice is made, and refused, before anything is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from engine.errors import ModelLoadError

MemoryProfileName = Literal["resident", "offload-text", "float8"]

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MemoryProfile:
    """Where weights live.

    Attributes:
        device_class: the smallest usual card that FLUX.1-dev fits on this way.
        is_text_offloaded: text encoders stay in host memory and visit the device layer by layer for a new prompt
            (FLUX.1-dev: 9.5 GB over the bus). Prompts seen before come from the cache.
        is_transformer_float8: the transformer blocks' matrices are stored as float8 (e4m3) with a scale a row and
            widened for each product. Embedders, modulation and the last layer keep their precision: without them
            quality falls apart (LPIPS 0.74 against 0.07, vllm-omni #2795).
    """

    device_class: str
    is_text_offloaded: bool
    is_transformer_float8: bool


MEMORY_PROFILES: Mapping[MemoryProfileName, MemoryProfile] = {
    "resident": MemoryProfile(device_class="80 GB", is_text_offloaded=False, is_transformer_float8=False),
    "offload-text": MemoryProfile(device_class="48 GB", is_text_offloaded=True, is_transformer_float8=False),
    "float8": MemoryProfile(device_class="24 GB", is_text_offloaded=True, is_transformer_float8=True),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """Bytes a model will take on its device, by what takes them.

    Attributes:
        name: the memory profile.
        lasting: held as long as the engine lives: weights, caches.
        passing: held for a moment each, one at a time: a step's activations, the decoder's, a visiting layer.
    """

    name: MemoryProfileName
    lasting: Mapping[str, int]
    passing: Mapping[str, int]

    @property
    def num_bytes(self) -> int:
        """All that lasts, and the largest of what passes."""
        return sum(self.lasting.values()) + max(self.passing.values())

    def arithmetic(self) -> str:
        """The sum in words: what a person checks a refusal by."""
        largest = max(self.passing, key=lambda part: self.passing[part])
        terms = [f"{part} {size / GIB:.1f}" for part, size in [*self.lasting.items(), (largest, self.passing[largest])]]
        return f"{' + '.join(terms)} = {self.num_bytes / GIB:.1f} GiB"


def check_fits(plan: MemoryPlan, available_bytes: int, *, others: Mapping[MemoryProfileName, MemoryPlan]) -> None:
    """Refuse an impossible choice before loading.

    Args:
        others: plans of the other memory profiles, for the advice in the message.

    Raises:
        ModelLoadError: the plan is larger than the device; shows the arithmetic and what would fit.
    """
    if plan.num_bytes <= available_bytes:
        return
    fitting = [name for name, other in others.items() if other.num_bytes <= available_bytes]
    advice = f"memory: {fitting[0]} would fit" if fitting else "no memory profile fits this device"
    raise ModelLoadError(
        f"memory: {plan.name} needs {plan.arithmetic()}, but the device has {available_bytes / GIB:.1f} GiB free; "
        f"{advice}"
    )
