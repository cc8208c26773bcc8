"""``likeness flux-ipadapter-faceid`` from flags to exit code, output file and printed lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from serve_app import data_url
from serve_app.cli import main
from tests.answering_server import AnsweringServer, Canned, answering, drawn, picture_bytes, refused


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "ref.png"
    path.write_bytes(picture_bytes("PNG"))
    return path


def flags(reference: Path, output: Path, url: str, *more: str) -> list[str]:
    required = ["--prompt", "a portrait", "--reference-image", str(reference), "--output", str(output), "--url", url]
    return ["flux-ipadapter-faceid", *required, *more]


def run(answers: Sequence[Canned], reference: Path, output: Path, *more: str) -> tuple[int, AnsweringServer]:
    with answering(answers) as server:
        return main(flags(reference, output, server.url, *more)), server


def test_the_contracts_command_line(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.jpg"
    more = ["--steps", "20", "--cfg", "1.0", "--ipadapter-strength", "0.8", "--face-provider", "CPU"]
    status, server = run([drawn()], reference, output, *more)
    assert status == 0
    assert output.read_bytes() == drawn().body
    body = server.bodies[0]
    assert data_url.parse(body.pop("reference_image")).data == reference.read_bytes()
    assert body == {
        "prompt": "a portrait",
        "negative_prompt": "",
        "width": 1024,
        "height": 1024,
        "steps": 20,
        "cfg": 1.0,
        "seed": 42,
        "ipadapter_strength": 0.8,
        "face_provider": "CPU",
    }
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"Saved {output} (32x16 jpeg, 1 kB)",
        "X-Cost-USD: 0.001234",
        "X-Execution-Time-Sec: 2.500",
        "X-GPU-Type: CPU",
    ]


def test_a_key_of_the_environment_is_sent_and_never_printed(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIKENESS_API_KEY", raising=False)
    status, server = run([drawn()], reference, tmp_path / "out.jpg")
    assert status == 0
    assert "Authorization" not in server.headers[0]
    monkeypatch.setenv("LIKENESS_API_KEY", "likeness_swordfish\n")
    status, server = run([refused(401, kind="KeyRequiredError")], reference, tmp_path / "out.jpg", "--json")
    assert status == 2
    assert server.headers[0]["Authorization"] == "Bearer likeness_swordfish"
    for bad in ("two words", "schlüssel"):
        monkeypatch.setenv("LIKENESS_API_KEY", bad)
        status, server = run([], reference, tmp_path / "out.jpg")
        assert (status, server.headers) == (2, [])
    printed = capsys.readouterr()
    assert "LIKENESS_API_KEY holds more than a key" in printed.err
    for secret in ("swordfish", "two words", "schlüssel"):
        assert secret not in printed.out + printed.err


def test_every_further_flag_is_sent(reference: Path, tmp_path: Path) -> None:
    more = ["--negative-prompt", "blurry", "--width", "512", "--height", "768", "--seed", "-1", "--guidance", "2.5"]
    more += ["--face-policy", "require", "--scheduler", "flux", "--face-provider", "GPU", "--cfg", "4"]
    status, server = run([drawn()], reference, tmp_path / "out.jpg", *more)
    assert status == 0
    expected = {"negative_prompt": "blurry", "width": 512, "height": 768, "seed": -1, "guidance": 2.5, "cfg": 4.0}
    expected |= {"face_policy": "require", "scheduler": "flux", "face_provider": "GPU"}
    assert {name: server.bodies[0][name] for name in expected} == expected
    assert server.bodies[0].keys().isdisjoint({"score", "num_candidates", "min_similarity"})


def test_wishes_for_likeness_are_sent_where_asked_for(reference: Path, tmp_path: Path) -> None:
    wishes = ["--score", "--num-candidates", "4", "--min-similarity", "0.6"]
    answer = drawn(**{"X-Face-Similarity": "none"})
    status, server = run([answer], reference, tmp_path / "out.jpg", *wishes)
    assert status == 0
    expected = {"score": True, "num_candidates": 4, "min_similarity": 0.6}
    assert {name: server.bodies[0][name] for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "more", "kind"),
    [
        ("out.jpg", [], "JPEG"),
        ("out", [], "JPEG"),
        ("out.PNG", [], "PNG"),
        ("out.webp", [], "WEBP"),
        ("out.jpg", ["--format", "png"], "PNG"),
    ],
)
def test_the_format_follows_the_name_unless_said(
    reference: Path, tmp_path: Path, name: str, more: list[str], kind: str
) -> None:
    status, server = run([drawn(kind)], reference, tmp_path / name, *more)
    assert status == 0
    assert server.headers[0]["Accept"] == f"image/{kind.lower()}"


def test_seed_drawn_size_and_warnings_are_told(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"X-Seed": "99", "X-Drawn-Size": "16x8", "X-Warning": "no face was found", "X-Face-Similarity": "0.7312"}
    answer = drawn(**told)
    status, _ = run([answer], reference, tmp_path / "out.jpg", "--seed", "-1")
    printed = capsys.readouterr()
    assert status == 0
    assert "32x16 jpeg, drawn at 16x8" in printed.out
    assert "Seed: 99" in printed.out
    assert "Face similarity: 0.7312" in printed.out
    assert "Warning: no face was found" in printed.err


def test_json_on_standard_output_and_nothing_else(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = run([drawn()], reference, tmp_path / "out.jpg", "--json")
    printed = json.loads(capsys.readouterr().out)
    assert status == 0
    assert printed["output"] == str(tmp_path / "out.jpg")
    assert (printed["cost_usd"], printed["execution_time_s"], printed["gpu_type"]) == (0.001234, 2.5, "CPU")
    assert "data" not in printed


def test_json_errors_say_the_exit_code(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _ = run([refused(400, "prompt is bad", "InvalidRequestError")], reference, tmp_path / "out.jpg", "--json")
    assert status == 2
    assert json.loads(capsys.readouterr().out) == {
        "error": "prompt is bad (HTTP 400)",
        "type": "InvalidRequestError",
        "exit_code": 2,
    }


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (refused(400), 2),
        (refused(429), 3),
        (refused(504), 4),
        (refused(500), 5),
        (Canned(headers={"Content-Type": "text/html"}, body=b"hello"), 5),
        (Canned(headers={"Content-Type": "image/jpeg"}, body=b"\xff\xd8\xff half", declared_bytes=500), 4),
    ],
)
def test_a_failure_keeps_the_old_file_and_leaves_nothing_beside(
    reference: Path, tmp_path: Path, answer: Canned, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jpg"
    output.write_bytes(b"old")
    status, _ = run([answer], reference, output, "--retries", "0")
    assert status == expected
    assert output.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"ref.png", "out.jpg"}
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "likeness: " in printed.err
    assert "Traceback" not in printed.err


def test_a_bad_reference_is_refused_before_anything_is_sent(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference.write_bytes(b"not a picture")
    status, server = run([], reference, tmp_path / "out.jpg")
    assert status == 2
    assert server.bodies == []
    assert "is not a JPEG, PNG, WebP or GIF picture" in capsys.readouterr().err


def test_an_unwritable_output_is_refused_before_anything_is_sent(reference: Path, tmp_path: Path) -> None:
    status, server = run([], reference, tmp_path / "missing" / "out.jpg")
    assert status == 1
    assert server.bodies == []


@pytest.mark.parametrize(
    "more",
    [
        ["--cfg", "nan"],
        ["--ipadapter-strength", "inf"],
        ["--steps", "many"],
        ["--face-provider", "TPU"],
        ["--timeout", "0"],
        ["--retries", "-1"],
        ["--unknown"],
    ],
)
def test_flags_that_make_no_sense_end_with_2(reference: Path, tmp_path: Path, more: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(flags(reference, tmp_path / "out.jpg", "http://127.0.0.1:1", *more))
    assert caught.value.code == 2


def test_ctrl_c_ends_with_130_and_no_file(reference: Path, tmp_path: Path) -> None:
    asked, release = threading.Event(), threading.Event()

    def hold() -> None:
        asked.set()
        release.wait(30.0)

    with answering([Canned(before=hold)]) as server:
        command = [sys.executable, "-m", "serve_app.cli", *flags(reference, tmp_path / "out.jpg", server.url)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert asked.wait(30.0)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30.0)
        release.set()
    assert process.returncode == 130
    assert out == ""
    assert "interrupted" in err
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"ref.png"}


def test_a_reader_that_went_away_is_no_traceback(reference: Path, tmp_path: Path) -> None:
    with answering([drawn()]) as server:
        command = [sys.executable, "-m", "serve_app.cli", *flags(reference, tmp_path / "out.jpg", server.url)]
        read_fd, write_fd = os.pipe()
        os.close(read_fd)
        with os.fdopen(write_fd, "w") as closed:
            done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out.jpg").read_bytes() == drawn().body


def test_help_names_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    from serve_app.exit_codes import ExitCode

    with pytest.raises(SystemExit):
        main(["flux-ipadapter-faceid", "--help"])
    listed = {line.split()[0] for line in capsys.readouterr().out.partition("exit codes:")[2].splitlines() if line}
    assert listed == {str(int(code)) for code in ExitCode}
