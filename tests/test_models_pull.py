"""Fetching model files from a stand-in of the hub: resuming, refusing, and never putting a wrong file in place."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from huggingface_hub import close_session, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.profile import load_profile, packaged_profiles
from engine.weights.catalog import APACHE_TERMS, CATALOG, FLUX_DEV, FLUX_DEV_TERMS, RemoteFile, remote_files
from engine.weights.checksum import RECEIPTS
from engine.weights.download import MAX_ATTEMPTS
from engine.weights.hub import Hub
from engine.weights.pull import Pulled, pull
from engine.weights.pull_errors import (
    AccessRefusedError,
    DiskFullError,
    HubBusyError,
    HubFailedError,
    HubOfflineError,
    HubUnreachableError,
    LicenceNotAcceptedError,
    LocalFolderError,
    NotEnoughSpaceError,
    NothingToPullError,
    NotOnHubError,
    OtherFileError,
    PullError,
    WrongContentError,
)
from tests.hub_server import COMMIT, HubServer, StoredFile, hub_server

CONTENT = random.Random(0).randbytes(300_000)
SMALL = b"a small file"
TOKEN = "hf_theTokenOfThisTest"
BIG = "big.safetensors"


@pytest.fixture(autouse=True, scope="module")
def no_open_connections() -> Iterator[None]:
    yield
    close_session()  # the library keeps one session for the process


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server(
        StoredFile(repo_id="lab/model", path=BIG, content=CONTENT),
        StoredFile(repo_id="lab/encoders", path="sub/small.bin", content=SMALL),
    ) as server:
        yield server


def remote(content: bytes = CONTENT, **changes: Any) -> RemoteFile:
    file = RemoteFile(
        repo_id="lab/model",
        path=BIG,
        revision=COMMIT,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        terms=APACHE_TERMS,
    )
    return dataclasses.replace(file, **changes)


BOTH = {BIG: remote(), "named.bin": remote(SMALL, repo_id="lab/encoders", path="sub/small.bin")}


def run(hub: HubServer, folder: Path, files: dict[str, RemoteFile] | None = None, **options: Any) -> tuple[Pulled, ...]:
    token = options.pop("token", None)
    defaults: dict[str, Any] = {"accepted_licences": (), "sleep": lambda seconds: None}
    return pull(
        {BIG: remote()} if files is None else files,
        folder,
        hub=Hub(endpoint=hub.url, token=token),
        **(defaults | options),
    )


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def partials(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.partial"))


def test_files_come_whole_under_the_profiles_names(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "on the way"
    pulled = run(hub, folder, BOTH)
    assert (folder / BIG).read_bytes() == CONTENT
    assert (folder / "named.bin").read_bytes() == SMALL
    assert visible(folder) == {BIG, "named.bin"}
    assert partials(folder) == []
    assert [(file.name, file.fetched_bytes, file.checked_against) for file in pulled] == [
        (BIG, len(CONTENT), "catalog"),
        ("named.bin", len(SMALL), "catalog"),
    ]
    assert (folder / BIG).stat().st_mode & 0o777 == 0o644


def test_the_pinned_revision_is_asked_for_and_nothing_else_is(hub: HubServer, tmp_path: Path) -> None:
    run(hub, tmp_path, BOTH)
    heads = [f"/lab/model/resolve/{COMMIT}/{BIG}", f"/lab/encoders/resolve/{COMMIT}/sub/small.bin"]
    assert [seen.path for seen in hub.of("hub", "HEAD")] == heads
    assert len(hub.of("storage", "GET")) == 2
    assert len(hub.seen) == 4


def test_what_is_there_is_left_alone_without_asking_the_hub(hub: HubServer, tmp_path: Path) -> None:
    run(hub, tmp_path)
    before, num_seen = (tmp_path / BIG).stat(), len(hub.seen)
    (again,) = run(hub, tmp_path)
    assert again.fetched_bytes == 0
    assert len(hub.seen) == num_seen
    assert (tmp_path / BIG).stat().st_mtime_ns == before.st_mtime_ns


def test_a_file_that_somebody_else_put_there_is_checked_not_fetched(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / BIG).write_bytes(CONTENT)
    (found,) = run(hub, tmp_path)
    assert found.fetched_bytes == 0
    assert hub.seen == []


def test_a_file_changed_after_it_was_checked_is_noticed(hub: HubServer, tmp_path: Path) -> None:
    run(hub, tmp_path)
    with (tmp_path / BIG).open("r+b") as file:
        file.write(b"x")
    with pytest.raises(OtherFileError, match=f"{BIG} is in the folder and has the SHA-256"):
        run(hub, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"big.safetensors": 3}'])
def test_damaged_receipts_only_cost_time(hub: HubServer, tmp_path: Path, text: str) -> None:
    run(hub, tmp_path)
    (tmp_path / RECEIPTS).write_text(text)
    (again,) = run(hub, tmp_path)
    assert again.fetched_bytes == 0


def test_another_file_of_that_name_is_not_overwritten_unasked(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / BIG).write_bytes(b"my own")
    with pytest.raises(OtherFileError, match="has 6 bytes instead of 300000: move it away, or use --replace"):
        run(hub, tmp_path)
    assert (tmp_path / BIG).read_bytes() == b"my own"
    assert hub.of("storage", "GET") == []
    run(hub, tmp_path, is_replacing=True)
    assert (tmp_path / BIG).read_bytes() == CONTENT


# Connections that break


def test_a_cut_connection_goes_on_from_where_it_stopped(hub: HubServer, tmp_path: Path) -> None:
    hub.cuts = [100_000, 50_000]
    sleeps: list[float] = []
    (file,) = run(hub, tmp_path, sleep=sleeps.append)
    assert (tmp_path / BIG).read_bytes() == CONTENT
    assert [(seen.range, seen.sent_bytes) for seen in hub.of("storage", "GET")] == [
        ("bytes=0-", 100_000),
        ("bytes=100000-", 50_000),
        ("bytes=150000-", 150_000),
    ]
    assert file.fetched_bytes == len(CONTENT)
    assert sleeps == [1.0, 1.0]


def test_the_next_run_goes_on_from_the_partial_file(hub: HubServer, tmp_path: Path) -> None:
    hub.cuts = [200_000] + [0] * (MAX_ATTEMPTS - 1)
    sleeps: list[float] = []
    with pytest.raises(HubUnreachableError, match="run the command again"):
        run(hub, tmp_path, sleep=sleeps.append)
    assert sleeps == [1.0, 2.0, 4.0, 8.0]  # the first cut brought bytes; then four attempts that brought none
    assert visible(tmp_path) == set()
    assert [path.stat().st_size for path in partials(tmp_path)] == [200_000]
    hub.seen.clear()
    (file,) = run(hub, tmp_path)
    assert [(seen.range, seen.sent_bytes) for seen in hub.of("storage", "GET")] == [("bytes=200000-", 100_000)]
    assert file.fetched_bytes == 100_000
    assert (tmp_path / BIG).read_bytes() == CONTENT
    assert partials(tmp_path) == []


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, len(CONTENT)), max_size=6))
def test_any_cuts_over_any_runs_give_the_same_file(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    folder = tmp_path_factory.mktemp("cuts")
    with hub_server(StoredFile(repo_id="lab/model", path=BIG, content=CONTENT)) as hub:
        hub.cuts = list(cuts)
        for _ in range(len(cuts) + 1):
            try:
                run(hub, folder)
                break
            except HubUnreachableError:
                continue
        assert (folder / BIG).read_bytes() == CONTENT
        assert sum(seen.sent_bytes for seen in hub.of("storage", "GET")) == len(CONTENT)


def test_a_server_without_ranges_starts_over(hub: HubServer, tmp_path: Path) -> None:
    hub.knows_ranges = False
    hub.cuts = [100_000]
    (file,) = run(hub, tmp_path)
    assert (tmp_path / BIG).read_bytes() == CONTENT
    assert file.fetched_bytes == 100_000 + len(CONTENT)


def test_a_partial_file_that_is_too_long_is_thrown_away(hub: HubServer, tmp_path: Path) -> None:
    partial = tmp_path / f".{BIG}.{hashlib.sha256(CONTENT).hexdigest()[:12]}.partial"
    partial.write_bytes(CONTENT + b"more")
    run(hub, tmp_path)
    assert (tmp_path / BIG).read_bytes() == CONTENT


def test_a_complete_partial_file_is_only_checked(hub: HubServer, tmp_path: Path) -> None:
    partial = tmp_path / f".{BIG}.{hashlib.sha256(CONTENT).hexdigest()[:12]}.partial"
    partial.write_bytes(CONTENT)
    (file,) = run(hub, tmp_path)
    assert file.fetched_bytes == 0
    assert hub.of("storage", "GET") == []
    assert (tmp_path / BIG).read_bytes() == CONTENT


def test_partial_files_of_older_versions_go_when_the_new_one_is_in_place(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / f".{BIG}.0123456789ab.partial").write_bytes(b"of an older version")
    (tmp_path / ".other.safetensors.0123456789ab.partial").write_bytes(b"of another file")
    run(hub, tmp_path)
    assert [path.name for path in partials(tmp_path)] == [".other.safetensors.0123456789ab.partial"]


# Wrong content


def test_a_wrong_checksum_never_gets_its_name(hub: HubServer, tmp_path: Path) -> None:
    damaged = CONTENT[:-1] + b"?"
    hub.files[0] = dataclasses.replace(hub.files[0], content=damaged, stated_sha256=hashlib.sha256(CONTENT).hexdigest())
    with pytest.raises(WrongContentError) as caught:
        run(hub, tmp_path)
    assert hashlib.sha256(damaged).hexdigest() in str(caught.value)
    assert hashlib.sha256(CONTENT).hexdigest() in str(caught.value)
    assert "not put in place" in str(caught.value)
    assert visible(tmp_path) == set()
    assert partials(tmp_path) == []  # nothing of it can be trusted


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"stated_sha256": "0" * 64}, f"SHA-256 {'0' * 64} instead of"),
        ({"stated_size": 17}, "size 17 instead of 300000"),
    ],
)
def test_a_revision_with_another_file_is_refused_before_a_byte_is_fetched(
    hub: HubServer, tmp_path: Path, stated: dict[str, Any], words: str
) -> None:
    hub.files[0] = dataclasses.replace(hub.files[0], **stated)
    with pytest.raises(WrongContentError, match=words):
        run(hub, tmp_path)
    assert hub.of("storage", "GET") == []


def test_a_server_that_sends_too_much_is_stopped(hub: HubServer, tmp_path: Path) -> None:
    hub.files[0] = dataclasses.replace(
        hub.files[0],
        content=CONTENT + b"and more",
        stated_size=len(CONTENT),
        stated_sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    with pytest.raises(WrongContentError, match="more than the 300000 bytes"):
        run(hub, tmp_path)
    assert visible(tmp_path) == set()


def test_unknown_size_and_checksum_are_taken_from_the_hub(hub: HubServer, tmp_path: Path) -> None:
    (file,) = run(hub, tmp_path, {BIG: remote(size_bytes=None, sha256=None)})
    assert (file.checked_against, file.size_bytes) == ("hub", len(CONTENT))
    hub.files[0] = dataclasses.replace(hub.files[0], stated_sha256="a git object's name, as for small files")
    other = tmp_path / "other"
    (file,) = run(hub, other, {BIG: remote(size_bytes=None, sha256=None)})
    assert file.checked_against == "nobody"
    assert (other / BIG).read_bytes() == CONTENT


# Refusals


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (None, "lab/model is gated: agree to its licence on https://huggingface.co/lab/model, then set HF_TOKEN"),
        ("hf_ofSomebodyElse", "the account of this token may not read lab/model: agree to its licence on"),
        ("hf_unknown", "the hub does not know this token"),
    ],
)
def test_a_gated_repository_says_what_to_do(hub: HubServer, tmp_path: Path, token: str | None, words: str) -> None:
    hub.files[0] = dataclasses.replace(hub.files[0], token=TOKEN)
    # The gated file comes last, and still nothing is fetched: 36 GB for nothing would be a bad joke.
    with pytest.raises(AccessRefusedError) as caught:
        run(hub, tmp_path, dict(reversed(BOTH.items())), token=token)
    assert words in str(caught.value)
    assert hub.of("storage", "GET") == []
    asked = [seen.path for seen in hub.of("hub", "HEAD")]
    assert len(asked) == len(set(asked))  # asking again would not help


def test_the_token_opens_the_gate_and_never_reaches_storage(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.files[0] = dataclasses.replace(hub.files[0], token=TOKEN)
    hub.cuts = [10]
    run(hub, tmp_path, token=TOKEN)
    assert {seen.authorization for seen in hub.of("hub", "HEAD")} == {f"Bearer {TOKEN}"}
    assert {seen.authorization for seen in hub.of("storage", "GET")} == {None}
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(Hub(token=TOKEN))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"revision": "f" * 40}, f"lab/model has no revision {'f' * 40}"),
        ({"path": "other.bin"}, "lab/model has no file other.bin"),
        ({"repo_id": "lab/none"}, "lab/none does not exist, or is private"),
    ],
)
def test_what_is_not_on_the_hub(hub: HubServer, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises((NotOnHubError, AccessRefusedError), match=words):
        run(hub, tmp_path, {BIG: remote(**changes)})


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NotOnHubError), (429, HubBusyError), (500, HubFailedError), (503, HubFailedError)]
)
def test_answers_of_a_hub_in_trouble(hub: HubServer, tmp_path: Path, status: int, kind: type[PullError]) -> None:
    hub.statuses = [status] * MAX_ATTEMPTS
    with pytest.raises(kind):
        run(hub, tmp_path)
    assert len(hub.of("hub", "HEAD")) == (1 if status == 404 else MAX_ATTEMPTS)


def test_trouble_that_passes_is_waited_out(hub: HubServer, tmp_path: Path) -> None:
    hub.statuses = [503, 429, 500]
    sleeps: list[float] = []
    run(hub, tmp_path, sleep=sleeps.append)
    assert (tmp_path / BIG).read_bytes() == CONTENT
    assert sleeps == [1.0, 2.0, 4.0]


def test_a_network_that_is_down(tmp_path: Path) -> None:
    with hub_server() as gone:
        pass
    with pytest.raises(HubUnreachableError, match=r"the connection to 127\.0\.0\.1:\d+ failed \(ConnectError\)"):
        run(gone, tmp_path)


def test_the_librarys_offline_switch_is_obeyed_at_once(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubOfflineError, match="HF_HUB_OFFLINE is set: unset it"):
        run(hub, tmp_path)
    assert hub.seen == []


def test_a_licence_that_nobody_accepted(hub: HubServer, tmp_path: Path) -> None:
    files = BOTH | {BIG: remote(terms=FLUX_DEV_TERMS)}
    with pytest.raises(LicenceNotAcceptedError) as caught:
        run(hub, tmp_path / "new", files, accepted_licences=["Apache-2.0", "FLUX"])
    assert caught.value.covered == {FLUX_DEV_TERMS: (BIG,)}
    assert hub.seen == []
    assert not (tmp_path / "new").exists()
    run(hub, tmp_path / "new", files, accepted_licences=[FLUX_DEV_TERMS.name])
    assert visible(tmp_path / "new") == set(files)


# This machine


def test_too_little_room_is_found_before_anything_is_fetched(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(NotEnoughSpaceError) as caught:
        run(hub, tmp_path, BOTH, free_bytes=lambda folder: 100_000)
    assert "300 kB are still to come and 100 kB are free" in str(caught.value)
    assert "free 200 kB more" in str(caught.value)
    assert hub.of("storage", "GET") == []


def test_what_is_there_already_needs_no_room(hub: HubServer, tmp_path: Path) -> None:
    hub.cuts = [250_000] + [0] * (MAX_ATTEMPTS - 1)
    with pytest.raises(HubUnreachableError):
        run(hub, tmp_path)
    run(hub, tmp_path, free_bytes=lambda folder: 50_000)
    assert (tmp_path / BIG).read_bytes() == CONTENT
    run(hub, tmp_path, free_bytes=lambda folder: 0)


def test_a_disk_that_fills_up_keeps_what_came(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(DiskFullError, match="is full: free some room"):
        patch.setattr(os, "fsync", full)
        run(hub, tmp_path)
    assert visible(tmp_path) == set()
    (file,) = run(hub, tmp_path)
    assert file.fetched_bytes == 0


def test_a_write_that_finds_no_room_is_told_as_such(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def on_full_device(path: Path, mode: str = "r", **options: Any) -> BinaryIO | Any:
        return opened(Path("/dev/full") if path.suffix == ".partial" and mode == "ab" else path, mode, **options)

    monkeypatch.setattr(Path, "open", on_full_device)
    with pytest.raises(DiskFullError, match=f"it goes on with {BIG} where it stopped"):
        run(hub, tmp_path)


def test_a_folder_that_is_a_file(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalFolderError, match=r"can't use .* as a model folder"):
        run(hub, tmp_path / "file")


def test_two_runs_in_one_folder_do_not_meet(hub: HubServer, tmp_path: Path) -> None:
    with (tmp_path / ".pull.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LocalFolderError, match="another pull is at work"):
            run(hub, tmp_path)
    run(hub, tmp_path)


# The stand-in itself


def test_the_stand_in_speaks_the_hubs_language(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own client, which we did not write, downloads from it and understands how it refuses."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # it would ask the real hub who we are
    hub.files[0] = dataclasses.replace(hub.files[0], token=TOKEN)

    def download(repo_id: str, name: str, *, token: str | bool = False, revision: str = COMMIT) -> Path:
        return Path(
            hf_hub_download(
                repo_id, name, revision=revision, endpoint=hub.url, token=token, local_dir=tmp_path, cache_dir=tmp_path
            )
        )

    assert download("lab/model", BIG, token=TOKEN).read_bytes() == CONTENT
    assert download("lab/encoders", "sub/small.bin").read_bytes() == SMALL
    assert {seen.authorization for seen in hub.of("storage", "GET")} == {None}
    for error, arguments in (
        (GatedRepoError, {"repo_id": "lab/model", "name": "x"}),
        (GatedRepoError, {"repo_id": "lab/model", "name": "x", "token": "hf_ofSomebodyElse"}),
        (RepositoryNotFoundError, {"repo_id": "lab/none", "name": "x"}),
        (RevisionNotFoundError, {"repo_id": "lab/encoders", "name": "x", "revision": "f" * 40}),
        (RemoteEntryNotFoundError, {"repo_id": "lab/encoders", "name": "x"}),
    ):
        with pytest.raises(error):
            download(**arguments)


# The catalog


def test_a_profile_without_files_on_the_hub() -> None:
    with pytest.raises(NothingToPullError):
        pull(remote_files(load_profile("embedded")), Path("unused"), hub=Hub(), accepted_licences=())


def test_the_catalog_covers_every_file_of_its_profiles() -> None:
    assert set(CATALOG) <= set(packaged_profiles())
    for name in CATALOG:
        profile = load_profile(name)
        assert set(remote_files(profile)) == set(dataclasses.astuple(profile.files))
        names = {file.terms.name for file in CATALOG[name].values() if file.terms.must_be_accepted}
        assert profile.licence.name in names
        assert names == {profile.licence.name}


@pytest.mark.parametrize("role", FLUX_DEV)
def test_values_of_the_catalog_have_the_form_of_what_they_are(role: str) -> None:
    file = FLUX_DEV[role]
    assert file.sha256 is None or (len(file.sha256) == 64 and int(file.sha256, 16) >= 0)
    assert file.revision == "main" or (len(file.revision) == 40 and int(file.revision, 16) >= 0)
    assert file.size_bytes is None or file.size_bytes < 50 * 10**9  # the most that the hub serves over plain HTTP
