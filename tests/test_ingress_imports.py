"""The ingress process holds no network: nothing it imports brings one in."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "safetensors")


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("serve_app.ingress", (*HEAVY, "ray")),
        ("serve_app.contract", (*HEAVY, "ray", "fastapi")),
        ("serve_app.settings", (*HEAVY, "ray", "fastapi")),
        ("serve_app.config_file", (*HEAVY, "ray")),
        ("serve_app.app", HEAVY),
    ],
)
def test_a_fresh_interpreter_stays_light(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*(name for name in {forbidden!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
