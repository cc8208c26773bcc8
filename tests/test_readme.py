"""What the README tells people to type works: commands exist and parse, JSON is the contract's, figures have a row."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import cast

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
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def command_lines() -> list[list[str]]:
    """Every line of every bash block as words, continuation lines joined, comments dropped."""
    joined = "\n".join(blocks("bash")).replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def commands_of(program: str) -> list[list[str]]:
    found = [words[1:] for words in command_lines() if words[0] == program]
    assert found, f"the README shows no {program} command"
    return found


def test_bash_blocks_are_bash() -> None:
    for block in blocks("bash"):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stderr}"


def test_only_known_programs_are_shown() -> None:
    assert {words[0] for words in command_lines()} <= {"make", "likeness", "curl", "serve"}


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    shown = {words[0] for words in commands_of("make")}
    assert {"demo", "serve", "test"} <= shown <= targets


def test_likeness_commands_parse() -> None:
    for words in commands_of("likeness"):
        arguments = build_parser().parse_args(words)
        assert callable(arguments.run)


def test_files_that_commands_name_exist() -> None:
    for words in command_lines():
        named = [word for word in words if re.fullmatch(r"[\w./-]+\.(ya?ml|jpg|png)", word)]
        outputs = {words[i + 1] for i, word in enumerate(words) if word in ("--output", "-o")}
        missing = [name for name in named if name not in outputs and not (ROOT / name).is_file()]
        assert missing == []


def test_flags_in_the_text_exist() -> None:
    known = set()
    parser = build_parser()
    for action in parser._subparsers._group_actions:  # type: ignore[union-attr]  # argparse lists them nowhere else
        for subparser in action.choices.values():  # type: ignore[union-attr]
            known |= set(subparser._option_string_actions)
    shown = set(re.findall(r"`(--[a-z-]+)", README))
    assert shown
    assert shown <= known


def test_linked_files_and_headings_exist() -> None:
    links = re.findall(r"\]\((?!https?://)([^)]+)\)", README) + re.findall(r"`(docs/[\w./-]+)`", README)
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).exists(), link
        if anchor:
            assert anchor in anchors((ROOT / path).read_text(encoding="utf-8")), link


def anchors(markdown: str) -> set[str]:
    """What headings are linked as: lower case, spaces to hyphens, punctuation dropped."""
    headings = re.findall(r"^#+ (.+)$", markdown, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_json_examples_are_the_contracts() -> None:
    requests, errors = 0, 0
    for block in blocks("json"):
        value = json.loads(block.replace("AAQ...", "AAQ"))  # the picture is cut short there
        if "prompt" in value:
            GenerationBody.model_validate(value)
            requests += 1
        else:
            ErrorBody.model_validate(value, strict=True)
            errors += 1
    assert (requests, errors) == (1, 1)


def test_the_field_table_names_every_field_and_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)`(?:, `\w+`)? \| ([^|]+) \|", README, flags=re.MULTILINE))
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
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, flags=re.MULTILINE)}
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
    shown = set(re.findall(r"[ `(](/[a-z][a-z0-9/-]*)`", README))
    assert f"/{NAME}" == ENDPOINT
    assert ENDPOINT in served
    assert {"/health", "/ready"} <= shown <= served
