"""Settings that know what they know: the base of every section of the configuration."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class StrictSettings(BaseModel):
    """Settings that refuse what they don't know, and say which name was probably meant."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    raise ValueError(unknown_key(key, tuple(cls.model_fields)))
        return values


def unknown_key(key: object, known: tuple[str, ...]) -> str:
    """``unknown key 'modle_dir'; did you mean 'model_dir'?``"""
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"unknown key {key!r}; {hint}"
