"""A model on a device for benchmarks that drive the engine themselves: flags, random weights where there are none."""

from __future__ import annotations

import argparse
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.progress import tell
from engine.config import EngineConfig
from engine.profile import load_profile
from engine.runner import FluxRunner, load_runner
from engine.weights.untrained import write_untrained


def add_flags(parser: argparse.ArgumentParser, *, max_batch_tokens: int) -> None:
    """Which model, where, and how much of it at once."""
    parser.add_argument("--profile", default="embedded", help="a name or a TOML file (default %(default)s)")
    parser.add_argument(
        "--model-dir",
        metavar="FOLDER",
        help="random weights are written into it where it holds none, and stay for the next run (default: a temporary "
        "folder)",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--cpu-threads", type=int)
    parser.add_argument("--max-batch-tokens", type=int, default=max_batch_tokens, help="default %(default)s")


def load(arguments: argparse.Namespace) -> tuple[EngineConfig, FluxRunner]:
    """The networks that the flags of :func:`add_flags` describe, and a config that refuses no request for its length.

    Random weights cost what trained ones cost. They go through files, so that the loader is the production's.

    Raises:
        ModelLoadError: the folder holds other files, or not all of the profile's.
    """
    profile = load_profile(arguments.profile)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.model_dir or temporary
        if not any(Path(folder).glob("*.safetensors")):
            write_untrained(
                profile, folder, device=arguments.device, on_file=lambda name: tell(f"writing random weights: {name}")
            )
        config = EngineConfig(
            profile=profile,
            model_dir=folder,
            device=arguments.device,
            dtype=arguments.dtype,
            cpu_threads=arguments.cpu_threads,
            max_batch_tokens=arguments.max_batch_tokens,
            max_waiting=10_000,
            max_queued_device_s=1e9,
        )
        return config, load_runner(config, lambda role, seconds: tell(f"loaded {role} in {seconds:.1f} s"))


def facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """What has to stand beside every figure: the command, the machine, the model."""
    return {
        "torch": torch.__version__,
        "machine": machine(),
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or "CPU",
        "profile": arguments.profile,
        "dtype": arguments.dtype,
    }
