"""The check of a device's sensors sees through sensors that are stuck, silent, or in another unit."""

from __future__ import annotations

import pytest

from benchmarks.device_sensors import HELD_BYTES, checks, from_smi
from serve_app.metrics import table

TOTAL_BYTES = 150.1e9
IDLE = {
    table.TEMPERATURE.name: 31.0,
    table.UTILISATION.name: 0.0,
    table.POWER.name: 76.0,
    table.MEMORY_USED.name: 0.0,
    table.MEMORY_PEAK.name: 0.0,
    table.MEMORY_TOTAL.name: TOTAL_BYTES,
}
LOADED = IDLE | {
    table.TEMPERATURE.name: 48.0,
    table.UTILISATION.name: 1.0,
    table.POWER.name: 640.0,
    table.MEMORY_USED.name: HELD_BYTES + 3e8,
    table.MEMORY_PEAK.name: HELD_BYTES + 3e8,
}
SMI = from_smi("47, 100, 655.32, 143771\n")


def failed(idle: dict[str, float], loaded: dict[str, float], smi: dict[str, float] | None = None) -> set[str]:
    return {name for name, is_met in checks([idle] * 3, [loaded] * 3, smi).items() if not is_met}


def test_a_device_that_works_passes() -> None:
    assert not failed(IDLE, LOADED, SMI)
    assert not failed(IDLE, LOADED)


@pytest.mark.parametrize(
    ("name", "factor", "expected"),
    [
        (table.UTILISATION.name, 100.0, "device_utilisation_ratio is between 0 and 1"),
        (table.POWER.name, 1000.0, "device_power_watts is between 5 and 1500"),
        (table.POWER.name, 0.5, "device_power_watts is what nvidia-smi says"),
        (table.TEMPERATURE.name, 1.8, "device_temperature_celsius is what nvidia-smi says"),
        (table.MEMORY_TOTAL.name, 0.5, "device_memory_total_bytes is what nvidia-smi says"),
    ],
)
def test_another_unit_is_seen(name: str, factor: float, expected: str) -> None:
    assert expected in failed(IDLE, LOADED | {name: factor * LOADED[name]}, SMI)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (table.UTILISATION.name, "utilisation rises under load"),
        (table.POWER.name, "power rises under load"),
        (table.MEMORY_USED.name, "memory that is held is seen"),
    ],
)
def test_a_stuck_sensor_is_seen(name: str, expected: str) -> None:
    assert expected in failed(IDLE, LOADED | {name: IDLE[name]})


def test_a_silent_sensor_is_seen() -> None:
    without = {name: value for name, value in LOADED.items() if name != table.POWER.name}
    assert {"device_power_watts is told", "power rises under load"} <= failed(IDLE, without)


def test_what_nvidia_smi_does_not_know_is_not_compared() -> None:
    assert from_smi("47, [N/A], 655.32, 143771\n").keys() == SMI.keys() - {table.UTILISATION.name}
    assert "nvidia-smi, where there is one, answers" in failed(IDLE, LOADED, from_smi("No devices were found\n"))
