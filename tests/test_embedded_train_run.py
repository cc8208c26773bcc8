"""The training driver as it is started on a machine with two GPUs: two processes, from the autoencoder to the parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from embedded.train import export
from tests.miniature_training import miniature, write_people

pytestmark = pytest.mark.slow

PATIENCE_S = 300.0
"""Processes that wait for each other for ever are a failure, not a long test."""


def run_stage(folder: Path, stage: str, *arguments: str, processes: int) -> str:
    """One stage by so many processes. Returns what the first of them said."""
    store = folder / f"store-{stage}"
    command = [sys.executable, "-m", "tests.miniature_training", str(store), "--stage", stage, *arguments]
    command += ["--work", str(folder), "--out", str(folder / "out"), "--commit", "0" * 40]
    environment = os.environ | {"WORLD_SIZE": str(processes), "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]
    try:
        said = [process.communicate(timeout=PATIENCE_S)[1] for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(said)
    return said[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("driver")
    write_people(path / "data")
    run_stage(path, "autoencoder", "--max-steps", "2", "--ae-batch", "2", processes=1)
    return path


def test_two_processes_train_distil_and_leave_a_whole_model(folder: Path, tmp_path: Path) -> None:
    few = ("--max-steps", "2", "--batch", "4", "--looking-batch", "4", "--reader-batch", "4")
    said = run_stage(folder, "flow", *few, "--distill-seconds", "1", processes=2)
    assert "flow: {" in said
    assert "distill: {" in said
    export.join(folder / "out", tmp_path)
    stages = json.loads((tmp_path / "provenance.json").read_text())["stages"]
    assert stages["flow"]["processes"] == 2
    assert stages["flow"]["examples"] == 2 * 2 * 4
    assert stages["flow"]["looking"]["steps"] == 2
    assert stages["distill"]["steps"] == 2
    learner, _ = export.read_model(miniature(), tmp_path)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in learner.parameters())


def test_a_model_in_parts_is_where_another_run_begins(folder: Path, tmp_path: Path) -> None:
    (folder / "flow.pt").unlink(missing_ok=True)  # another test's
    few = ("--max-steps", "1", "--batch", "4", "--looking-batch", "4", "--reader-batch", "4")
    run_stage(folder, "flow", *few, processes=1)
    export.join(folder / "out", tmp_path / "first")
    (folder / "flow.pt").unlink()
    again = (*few, "--looking-share", "0", "--initial", str(tmp_path / "first"))
    run_stage(folder, "flow", *again, processes=1)
    export.join(folder / "out", tmp_path / "second")
    stages = json.loads((tmp_path / "second" / "provenance.json").read_text())["stages"]
    assert stages["flow"]["looking"] is None
    assert stages["flow"]["initial"]["stages"]["flow"]["looking"]["steps"] == 1
