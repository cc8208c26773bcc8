"""What docs promise is held by tests that exist, and what they tell people to type exists too."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from serve_app.scaling.settings import ScalingSettings

ROOT = Path(__file__).resolve().parent.parent
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def promises() -> list[tuple[str, str]]:
    """Rows of the table: the promise, and who holds it."""
    rows = [line.strip("|").split("|") for line in GUARANTEES.splitlines() if line.startswith("|")]
    return [(promise.strip(), held_by) for promise, held_by in rows[2:]]


@pytest.mark.parametrize(("promise", "held_by"), promises())
def test_every_promise_is_held_by_a_test(promise: str, held_by: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", held_by)
    assert named, promise
    for path, function in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
        assert tests
        assert not function or function in tests, f"{path} has no {function}"


def test_every_fault_that_is_tested_is_promised() -> None:
    held = " ".join(held_by for _, held_by in promises())
    for name in ("faults", "scaling", "embedded", "nodes"):
        path = f"tests/cluster/test_cluster_{name}.py"
        for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert f"`{path}::{node.name}`" in held


@pytest.mark.parametrize("text", [GUARANTEES, OPERATIONS], ids=["guarantees", "operations"])
def test_linked_files_exist(text: str) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", text) + re.findall(r"`((?:serve_app|tests|deploy)/[\w/.]+)`", text)
    missing = [link for link in links if not (ROOT / "docs" / link).exists() and not (ROOT / link).exists()]
    assert links
    assert missing == []


def test_the_policys_numbers_are_explained_and_no_others() -> None:
    section = OPERATIONS.partition("## Scaling")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \|", section, flags=re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(ScalingSettings.model_fields)


def test_the_log_lines_shown_have_the_fields_of_the_real_ones() -> None:
    line = re.search(r'^\{"event":"scaling".*?\}$', OPERATIONS.replace(",\n ", ","), flags=re.MULTILINE)
    assert line is not None
    shown = yaml.safe_load(line[0])
    assert shown.keys() == {
        *("event", "deployment", "application", "from", "to", "running", "cause", "reason", "owed_s", "arriving"),
    }
