"""What README and docs tell people to type works: commands exist, JSON is the contract's, links lead somewhere."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import cast

import pytest

from serve_app.cli import build_parser
from serve_app.client import ENDPOINT
from serve_app.client_command import NAME
from serve_app.contract import GenerationBody
from serve_app.contract_answers import ErrorBody
from serve_app.exit_codes import ExitCode
from serve_app.ingress import make_app
from serve_app.metrics.ingress import IngressMetrics
from serve_app.settings import AppSettings, FaceSettings, FakeEngineSettings
from serve_app.stages import Backend

ROOT = Path(__file__).resolve().parent.parent
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
API = TEXTS["api.md"]

PROGRAMS = frozenset({"make", "likeness", "curl", "serve", "python"})
"""What ``bash`` blocks may run. Transcripts, with a ``$`` before each command, may run others too."""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def command_lines(text: str) -> list[list[str]]:
    """Every line of every bash block as words, and of every transcript what was typed; what is cut short is not."""
    typed = "\n".join(blocks(text, "bash"))
    for transcript in blocks(text, ""):
        typed += "".join(
            f"{line}\n" for line in re.findall(r"^(?:\$ )?((?:likeness|make) .*)$", transcript, flags=re.M)
        )
    lines = typed.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines if "…" not in line]
    return [words for words in found if words]


def commands_of(program: str, text: str) -> list[list[str]]:
    return [words[1:] for words in command_lines(text) if words[0] == program]


@pytest.fixture(params=TEXTS)
def page(request: pytest.FixtureRequest) -> str:
    """The name of each page in turn."""
    return str(request.param)


def test_bash_blocks_are_bash(page: str) -> None:
    for block in blocks(TEXTS[page], "bash"):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stderr}"


def test_only_known_programs_are_shown(page: str) -> None:
    assert {words[0] for words in command_lines(TEXTS[page])} <= PROGRAMS


def test_the_readme_begins_with_what_runs_at_once() -> None:
    programs = [words[:2] for words in command_lines(TEXTS["README.md"])]
    assert programs[:2] == [["make", "demo"], ["make", "serve"]]
    assert {words[0] for words in programs} == {"make", "likeness", "curl", "serve"}


def test_make_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    shown = {words[0] for words in commands_of("make", TEXTS[page])}
    assert shown | set(re.findall(r"`make ([a-z-]+)", TEXTS[page])) <= targets


def test_likeness_commands_parse(page: str) -> None:
    for words in commands_of("likeness", TEXTS[page]):
        arguments = build_parser().parse_args([word for word in words if word != "&"])
        assert callable(arguments.run)


def test_python_modules_exist(page: str) -> None:
    for module in re.findall(r"python3? -m ([\w.]+)", TEXTS[page]):
        assert importlib.util.find_spec(module), module


def test_files_that_commands_name_exist() -> None:
    for words in command_lines(TEXTS["README.md"] + API):
        named = [word for word in words if re.fullmatch(r"[\w./-]+\.(ya?ml|jpg|png)", word)]
        outputs = {words[i + 1] for i, word in enumerate(words) if word in ("--output", "-o")}
        missing = [name for name in named if name not in outputs and not (ROOT / name).is_file()]
        assert missing == []


def test_flags_in_the_text_exist() -> None:
    (commands,) = (each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    known = set(commands.choices[NAME]._option_string_actions) - {"-h", "--help"}
    assert set(re.findall(r"(--[a-z][a-z-]+)", API)) == known


def test_linked_files_and_headings_exist(page: str) -> None:
    for link in re.findall(r"\]\((?!https?://)([^)]+)\)", TEXTS[page]):
        path, _, anchor = link.partition("#")
        target = PAGES[page].parent / path if path else PAGES[page]
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", sorted(TEXTS.keys() - {"log.md"}))  # which is history: files may have moved since
def test_files_that_pages_name_exist(page: str) -> None:
    rooms = "docs|serve_app|engine|tests|benchmarks|monitoring|deploy|embedded|scripts|examples|workflows"
    for path in re.findall(rf"`((?:{rooms})/[\w./-]+)(?:::\w+)?`", TEXTS[page]):
        assert (ROOT / path).exists(), path


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"docs/([\w-]+\.md)", TEXTS["README.md"]))
    assert linked == set(TEXTS) - {"README.md"}


def anchors(markdown: str) -> set[str]:
    """What headings are linked as: lower case, spaces to hyphens, punctuation dropped."""
    headings = re.findall(r"^#+ (.+)$", markdown, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_json_examples_are_the_contracts() -> None:
    requests, errors = 0, 0
    for block in blocks(API, "json"):
        value = json.loads(block.replace("AAQ...", "AAQ"))  # the picture is cut short there
        if "prompt" in value:
            GenerationBody.model_validate(value)
            requests += 1
        else:
            ErrorBody.model_validate(value, strict=True)
            errors += 1
    assert (requests, errors) == (1, 1)


def test_the_field_table_names_every_field_and_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)`(?:, `\w+`)? \| ([^|]+) \|", API, flags=re.MULTILINE))
    rows["height"] = rows["width"]
    for name, field in GenerationBody.model_fields.items():
        shown = rows[name].strip()
        if field.is_required():
            assert shown == "required", name
        elif name == "face_policy":
            assert shown == 'the deployment\'s, `"prefer"`'
        else:
            expected = json.dumps(field.default)
            assert shown in (expected, f"`{expected}`"), name


def test_the_exit_code_table_is_complete() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d{1,2}|130) \|", API, flags=re.MULTILINE)}
    assert listed == {int(code) for code in ExitCode}


def test_paths_in_the_text_are_the_services() -> None:
    settings = AppSettings(
        profile="embedded", engine=FakeEngineSettings(kind="fake"), face=FaceSettings(cpu_encoder=False)
    )
    app = make_app(
        backend=cast(Backend, None),  # no request is sent
        settings=settings,
        profile=settings.load_profile(),
        metrics=IngressMetrics(),
    )
    served = {"/docs", *app.openapi()["paths"]}
    shown = set(re.findall(r"[ `(](/[a-z][a-z0-9/-]*)`", TEXTS["README.md"] + API))
    assert f"/{NAME}" == ENDPOINT
    assert ENDPOINT in served
    assert {"/health", "/ready"} <= shown <= served
