"""How an NVIDIA device is, as PyTorch tells it. Temperature, load and power need the package ``nvidia-ml-py``."""

from __future__ import annotations

import logging
from typing import Any

from serve_app.metrics import table
from serve_app.metrics.engine import DeviceReadings
from serve_app.metrics.metric import Metric

logger = logging.getLogger(__name__)


class CudaReader:
    """Reads the current device. What the driver does not tell is left out, and asked for no more.

    Args:
        cuda: ``torch.cuda``.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._total_bytes = float(cuda.get_device_properties(cuda.current_device()).total_memory)
        self._sensors: dict[Metric, tuple[Any, float]] = {
            table.TEMPERATURE: (cuda.temperature, 1.0),
            table.UTILISATION: (cuda.utilization, 0.01),  # per cent
            table.POWER: (cuda.power_draw, 0.001),  # milliwatts
        }

    def __call__(self) -> DeviceReadings:
        """What the device says now."""
        readings: dict[Metric, float] = {
            table.MEMORY_TOTAL: self._total_bytes,
            # The allocator's own counts: no call into the driver, also while it records a graph.
            table.MEMORY_USED: float(self._cuda.memory_reserved()),
            table.MEMORY_PEAK: float(self._cuda.max_memory_reserved()),
        }
        for metric, (sensor, unit) in list(self._sensors.items()):
            try:
                readings[metric] = sensor() * unit
            except Exception as error:  # NVML's errors, and ModuleNotFoundError without its package
                logger.info("%s is not to be had: %s", metric.name, type(error).__name__)
                del self._sensors[metric]
        return readings
