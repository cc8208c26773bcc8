"""Frozen dataclasses from TOML tables, strictly: no key missing, unknown or of another type."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, get_type_hints

from engine.errors import ModelLoadError

T = TypeVar("T")


def build(cls: type[T], table: dict[str, Any], *, where: str) -> T:
    """A dataclass from a table, nested ones from tables in it.

    Args:
        where: what messages call the table.

    Raises:
        ModelLoadError: a key is missing, unknown or of another type; or the dataclass refuses its values.
    """
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(table.keys() - fields.keys()):
        raise ModelLoadError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(fields)}")
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if missing := sorted(required - table.keys()):
        raise ModelLoadError(f"{where}: missing key {missing[0]!r}")
    values = {key: _convert(hints[key], value, where=f"{where}: {key}") for key, value in table.items()}
    return cls(**values)


def _convert(hint: Any, value: Any, *, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ModelLoadError(f"{where}: expected a table")
        return build(hint, value, where=where)
    if hint == tuple[int, ...]:
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise ModelLoadError(f"{where}: expected a list of integers, got {value!r}")
        return tuple(value)
    if hint == tuple[float, ...]:
        if not isinstance(value, list) or not all(type(item) in (int, float) for item in value):
            raise ModelLoadError(f"{where}: expected a list of numbers, got {value!r}")
        return tuple(map(float, value))
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    choices = getattr(hint, "__args__", ())
    if choices and value in choices:
        return value
    expected = " or ".join(map(repr, choices)) if choices else hint.__name__
    raise ModelLoadError(f"{where}: expected {expected}, got {value!r}")
