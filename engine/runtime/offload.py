"""A network that lives in host memory; its layers visit the device one after another while it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Offloaded:
    """Calls a host-resident module on a device. Peak device memory is its largest single layer."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        """On a machine with CUDA, host memory is pinned, so that weights travel at the bus's full speed."""
        self.module = module
        self.device = device
        self._host: dict[nn.Parameter, Tensor] = {}
        for layer in module.modules():
            own = list(layer.parameters(recurse=False))
            if own:
                self._host |= {p: p.data.pin_memory() if device.type == "cuda" else p.data for p in own}
                layer.register_forward_pre_hook(self._visit)
                layer.register_forward_hook(self._leave)
            for name, buffer in layer.named_buffers(recurse=False):
                layer.register_buffer(name, buffer.to(device), persistent=False)

    def __call__(self, **inputs: Any) -> Any:
        """As the module itself, with inputs on the device."""
        return self.module(**inputs)

    def _visit(self, layer: nn.Module, _: Any) -> None:
        for parameter in layer.parameters(recurse=False):
            parameter.data = self._host[parameter].to(self.device, non_blocking=True)

    def _leave(self, layer: nn.Module, _: Any, __: Any) -> None:
        for parameter in layer.parameters(recurse=False):
            parameter.data = self._host[parameter]
