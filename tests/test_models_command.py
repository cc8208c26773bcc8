"""``likeness models pull | verify | list`` from flags to exit code, files and printed lines."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from engine.profile import load_profile
from engine.weights import catalog, download, pull_errors
from engine.weights.catalog import APACHE_TERMS, FLUX_DEV_TERMS, RemoteFile
from serve_app.byte_progress import ByteProgress
from serve_app.cli import main
from serve_app.exit_codes import ExitCode
from serve_app.models_command import exit_code_of
from tests.hub_server import COMMIT, HubServer, StoredFile, hub_server

TOKEN = "hf_theTokenOfThisTest"
LICENCE = FLUX_DEV_TERMS.name
NAMES = dataclasses.asdict(load_profile("flux-dev").files)
CONTENTS = {role: random.Random(role).randbytes(50_000) for role in NAMES}
ACCEPT = ("--accept-licence", LICENCE)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """flux-dev's catalog with small files, its gated repository, and this process's environment pointing there."""
    stored, known = [], {}
    for role, name in NAMES.items():
        is_gated = role in ("transformer", "autoencoder")
        repo_id = "lab/gated" if is_gated else "lab/open"
        stored.append(StoredFile(repo_id=repo_id, path=name, content=CONTENTS[role], token=TOKEN if is_gated else None))
        known[role] = RemoteFile(
            repo_id=repo_id,
            path=name,
            revision=COMMIT,
            size_bytes=len(CONTENTS[role]),
            sha256=hashlib.sha256(CONTENTS[role]).hexdigest(),
            terms=FLUX_DEV_TERMS if is_gated else APACHE_TERMS,
            is_gated=is_gated,
        )
    monkeypatch.setitem(catalog.CATALOG, "flux-dev", known)
    monkeypatch.setattr(download, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no login of the developer's"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    with hub_server(*stored) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
    close_session()


def pull(folder: Path, *more: str) -> int:
    return main(["models", "pull", "--model-dir", str(folder), *more])


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_pull_with_licence_and_token(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert pull(tmp_path / "model", *ACCEPT) == 0
    assert {name: (tmp_path / "model" / name).read_bytes() for name in NAMES.values()} == {
        name: CONTENTS[role] for role, name in NAMES.items()
    }
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "flux1-dev.safetensors  50 kB  downloaded, SHA-256 as the catalog says"
    assert len(printed.out.splitlines()) == len(NAMES)
    assert f"{LICENCE}: flux1-dev.safetensors, ae.safetensors (https://" in printed.err
    assert TOKEN not in printed.out + printed.err
    assert not list(tmp_path.rglob("*partial*"))
    assert pull(tmp_path / "model", *ACCEPT) == 0
    assert "already there" in capsys.readouterr().out.splitlines()[0]


def test_pull_without_the_licence_says_what_to_accept_and_how(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pull(tmp_path / "model") == 2
    printed = capsys.readouterr()
    assert FLUX_DEV_TERMS.url in printed.err
    assert "non-commercial purposes only" in " ".join(printed.err.split())
    assert f"likeness models pull --profile flux-dev --model-dir {tmp_path}/model --accept-licence '{LICENCE}'" in (
        printed.err
    )
    assert printed.out == ""
    assert hub.seen == []
    assert not (tmp_path / "model").exists()


def test_the_token_may_come_from_a_file(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_anotherOne")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert pull(tmp_path / "model", *ACCEPT, "--token-file", str(tmp_path / "token")) == 0
    assert TOKEN not in "".join(capsys.readouterr())


@pytest.mark.parametrize("text", ["", "\n", "two words", "hf_tokén", "hf_a\nhf_b"])
def test_a_file_without_a_token_is_refused_without_repeating_it(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "token").write_text(text)
    assert pull(tmp_path / "model", *ACCEPT, "--token-file", str(tmp_path / "token")) == 2
    printed = capsys.readouterr().err
    assert "does not hold an access token" in printed
    assert not text.strip() or text not in printed
    assert pull(tmp_path / "model", *ACCEPT, "--token-file", str(tmp_path / "none")) == 2
    assert hub.seen == []


@pytest.mark.parametrize(
    ("token", "words"), [("", "lab/gated is gated"), ("hf_ofSomebodyElse", "the account of this token may not read")]
)
def test_a_closed_gate(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str,
    words: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    assert pull(tmp_path, *ACCEPT) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert "https://huggingface.co/lab/gated" in printed.err
    assert "Traceback" not in printed.err
    assert not token or token not in printed.err
    assert visible(tmp_path) == set()


def test_a_connection_that_stays_broken_and_the_run_after_it(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.cuts = [30_000] + [0] * (download.MAX_ATTEMPTS - 1)
    assert pull(tmp_path, *ACCEPT) == 4
    printed = capsys.readouterr().err
    assert "flux1-dev.safetensors: no connection, 30 kB are kept, next attempt in 0 s" in printed
    assert printed.splitlines()[-1].endswith("run the command again")
    hub.seen.clear()
    assert pull(tmp_path, *ACCEPT) == 0
    assert (hub.of("storage", "GET")[0].range, hub.of("storage", "GET")[0].sent_bytes) == ("bytes=30000-", 20_000)
    assert visible(tmp_path) == set(NAMES.values())


def test_wrong_bytes_end_with_5_and_no_file(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    right = hub.files[0]
    hub.files[0] = dataclasses.replace(right, content=bytes(50_000), stated_sha256=right.sha256)
    assert pull(tmp_path, *ACCEPT) == 5
    assert "it was not put in place" in capsys.readouterr().err
    assert visible(tmp_path) == set()


def test_another_file_in_the_way_ends_with_1(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "ae.safetensors").write_bytes(b"my own")
    assert pull(tmp_path, *ACCEPT) == 1
    assert "--replace" in capsys.readouterr().err
    assert pull(tmp_path, *ACCEPT, "--replace") == 0


def test_profiles_that_are_unknown_or_not_on_the_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pull(tmp_path, "--profile", "flux-pro") == 2
    assert "unknown profile 'flux-pro'" in capsys.readouterr().err
    assert pull(tmp_path, "--profile", "embedded") == 2
    assert "no files of profile embedded are on the hub" in capsys.readouterr().err


def test_every_error_of_pulling_has_an_exit_code() -> None:
    kinds = [kind for kind in vars(pull_errors).values() if isinstance(kind, type)]
    kinds = [kind for kind in kinds if issubclass(kind, pull_errors.PullError) and kind is not pull_errors.PullError]
    codes = {
        kind.__name__: exit_code_of(kind({} if kind is pull_errors.LicenceNotAcceptedError else "")) for kind in kinds
    }
    assert codes["NotEnoughSpaceError"] is ExitCode.LOCAL_FAILURE
    assert codes["LicenceNotAcceptedError"] is ExitCode.BAD_INPUT
    assert codes["HubOfflineError"] is ExitCode.UNREACHABLE
    assert ExitCode.OK not in codes.values()


def test_help_names_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["models", "pull", "--help"])
    lines = capsys.readouterr().out.partition("exit codes:")[2].partition("environment:")[0].splitlines()
    assert {line.split()[0] for line in lines if line} == {str(int(code)) for code in ExitCode}


HALF_A_FILE = """
import sys
from engine.weights import catalog, download
from serve_app.cli import main
file = catalog.RemoteFile(repo_id="lab/half", path="half", revision="main", size_bytes=200_000, sha256="0" * 64,
                          terms=catalog.APACHE_TERMS)
catalog.CATALOG["flux-dev"] = {"transformer": file}
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_keeps_what_came_and_the_token_is_on_no_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HALF_A_FILE, "models", "pull", "--model-dir", str(tmp_path)]
    stored = StoredFile(
        repo_id="lab/half",
        path="half",
        content=bytes(100_000),
        revision="main",
        stated_size=200_000,
        stated_sha256="0" * 64,
    )
    with hub_server(stored) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            for line in process.stderr:  # storage has half of the file: the command waits for the next attempt
                if b"next attempt" in line:
                    break
            assert TOKEN not in Path(f"/proc/{process.pid}/cmdline").read_text()
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=30.0)
    assert process.returncode == 130
    assert b"interrupted" in rest
    assert b"Traceback" not in rest
    assert visible(tmp_path) == set()
    assert [path.stat().st_size for path in tmp_path.glob(".*.partial")] == [100_000]
    assert {seen.authorization for seen in hub.of("hub", "HEAD")} == {f"Bearer {TOKEN}"}


def test_verify_says_what_fails_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "model")
    assert main(["models", "untrained", "--profile", "embedded", "--model-dir", folder]) == 0
    verify = ["models", "verify", "--profile", "embedded", "--model-dir", folder]
    assert main([*verify, "--checksum"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("contents:  ok") == 6
    assert printed.count("unknown, not checked") == 12
    assert printed.splitlines()[-1] == f"{folder}: no check failed."
    (tmp_path / "model" / "ae.safetensors").unlink()
    assert main([*verify, "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert not result["is_good"]
    failed = [file["name"] for file in result["files"] if file["checks"]["presence"]["outcome"] == "failed"]
    assert failed == ["ae.safetensors"]
    assert main(["models", "verify", "--profile", "none", "--model-dir", folder]) == 2


def test_list_for_people(hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ae.safetensors").write_bytes(CONTENTS["autoencoder"])
    (tmp_path / "clip_l.safetensors").write_bytes(b"short")
    assert main(["models", "list", "--profile", "flux-dev", "--model-dir", str(tmp_path)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[2:]}
    assert " present " in lines["ae.safetensors"]
    assert " other size " in lines["clip_l.safetensors"]
    assert " absent " in lines["flux1-dev.safetensors"]
    assert f"lab/gated, {LICENCE}, gated" in lines["flux1-dev.safetensors"]
    assert hub.seen == []


def test_list_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--json"]) == 0
    profiles = {profile["name"]: profile for profile in json.loads(capsys.readouterr().out)["profiles"]}
    flux_dev = profiles["flux-dev"]
    assert flux_dev["size_bytes"] == sum(file["size_bytes"] for file in flux_dev["files"]) > 36 * 10**9
    assert flux_dev["files"][0]["sha256"] == catalog.FLUX_DEV["transformer"].sha256
    assert "state" not in flux_dev["files"][0]
    assert profiles["embedded"]["size_bytes"] is None
    assert main(["models", "list", "--profile", "none"]) == 2


def test_list_loads_neither_networks_nor_the_hubs_library() -> None:
    code = "import sys; from serve_app.cli import main; main(['models', 'list']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1]
    assert "'torch'" not in loaded
    assert "'huggingface_hub'" not in loaded


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_bar_shows_share_amount_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream, clock = Terminal(), Clock()
    with ByteProgress(stream, clock=clock) as progress:
        progress.begin("flux1-dev.safetensors", done_bytes=2_000_000_000, total_bytes=12_000_000_000)
        clock.now_s = 10.0
        progress.advance(1_000_000_000)
        line = stream.getvalue().rpartition("\r\x1b[2K")[2]
        assert line.startswith("flux1-dev.safetensors  25%  3.0 of 12.0 GB  100.0 MB/s  90 s left [==  ")
        assert len(line) <= 79
        progress.advance(-3_000_000_000)  # from the beginning again: the speed until here says nothing
        clock.now_s = 20.0
        progress.advance(500_000_000)
        assert "   4%  500.0 MB of 12.0 GB  50.0 MB/s  4 min left" in stream.getvalue().rpartition("\r\x1b[2K")[2]
    assert stream.getvalue().endswith("\r\x1b[2K")


def test_a_log_gets_notes_and_no_bar() -> None:
    stream, clock = io.StringIO(), Clock()
    with ByteProgress(stream, clock=clock) as progress:
        progress.begin("a file", done_bytes=0, total_bytes=10)
        for _ in range(10):
            clock.now_s += 1.0
            progress.advance(1)
        progress.note("the connection broke")
    assert stream.getvalue() == "the connection broke\n"
