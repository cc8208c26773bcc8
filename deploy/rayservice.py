"""Writes ``serve_config.yaml`` into the Kubernetes manifest, which holds it as text: `python -m deploy.rayservice`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
SERVE_CONFIG = ROOT / "serve_config.yaml"
MANIFEST = ROOT / "deploy" / "rayservice.yaml"

_INDENT = " " * 4
_SERVE_CONFIG_BLOCK = re.compile(r"(?<=^  serveConfigV2: \|\n)(?:^    .*\n|^\n)*", re.MULTILINE)


def in_a_pod(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as pods need it: other pods reach the entrance through the pod's own address."""
    return {**config, "http_options": {**config["http_options"], "host": "0.0.0.0"}}  # noqa: S104


def manifest_with(config: dict[str, Any], manifest: str) -> str:
    """The manifest with this Serve configuration in it."""
    text = yaml.safe_dump(config, sort_keys=False, width=100)
    block = "".join(f"{_INDENT}{line}\n" for line in text.splitlines())
    written, num_blocks = _SERVE_CONFIG_BLOCK.subn(lambda _: block, manifest)
    if num_blocks != 1:
        raise ValueError(f"the manifest must hold one serveConfigV2 block, found {num_blocks}")
    return written


def main() -> None:
    """Write it."""
    config = in_a_pod(yaml.safe_load(SERVE_CONFIG.read_text(encoding="utf-8")))
    MANIFEST.write_text(manifest_with(config, MANIFEST.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
