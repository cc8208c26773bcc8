"""What goes out is a picture by its bytes; what comes in is on disk whole or not at all."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app import data_url
from serve_app.files import InputFileError, OutputFileError, check_writable, read_picture, write_atomically
from serve_app.retry import MAX_PAUSE_S, RetryPolicy, parse_retry_after
from tests.answering_server import picture_bytes

NOW = datetime.datetime(2027, 1, 1, 12, 0, 0, tzinfo=datetime.UTC)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_the_type_comes_from_the_bytes_not_from_the_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "misnamed.bmp"
    path.write_bytes(picture_bytes(kind))
    picture = read_picture(path)
    assert picture.media_type == f"image/{kind.lower()}"
    assert data_url.parse(data_url.build(picture)) == picture


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"hello", "is not a JPEG, PNG, WebP or GIF"),
        (b"RIFF0000WAVEfmt ", "is not a JPEG, PNG, WebP or GIF"),
        (b"\xff\xd8\xff" + bytes(98), "is larger than"),
    ],
)
def test_unusable_reference_files(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "ref.jpg"
    path.write_bytes(content)
    with pytest.raises(InputFileError, match=what):
        read_picture(path, max_bytes=100)


def test_reference_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="No such file"):
        read_picture(tmp_path / "missing.jpg")
    with pytest.raises(InputFileError, match="Is a directory"):
        read_picture(tmp_path)


def test_an_output_replaces_what_was_there_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "out.jpg"
    path.write_bytes(b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jpg"
    path.write_bytes(b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputFileError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written_are_found_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "fine.jpg")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputFileError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(OutputFileError, match="does not exist"):
        check_writable(tmp_path / "missing" / "out.jpg")


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, **kwargs: object) -> None:  # permissions do not stop root, who runs many test machines
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refused)
    with pytest.raises(OutputFileError, match="Permission denied"):
        check_writable(tmp_path / "out.jpg")


@pytest.mark.parametrize(
    ("value", "expected_s"),
    [
        ("0", 0.0),
        ("120", 120.0),
        ("1.5", 1.5),
        ("-5", 0.0),
        ("Fri, 01 Jan 2027 12:00:30 GMT", 30.0),
        ("Fri, 01 Jan 2027 11:59:00 GMT", 0.0),
        ("Fri, 01 Jan 2027 12:00:30 -0000", 30.0),
        ("soon", None),
        ("", None),
        ("inf", None),
        ("nan", None),
    ],
)
def test_both_forms_of_retry_after(value: str, expected_s: float | None) -> None:
    assert parse_retry_after(value, now=NOW) == expected_s


def policy(max_retries: int, random: float) -> RetryPolicy:
    return RetryPolicy(max_retries=max_retries, random=lambda: random, now=lambda: NOW)


@given(
    num_failed=st.integers(1, 12),
    retry_after=st.none() | st.floats(0, 1e6).map(str) | st.text(max_size=20),
    time_left_s=st.floats(-10, 1e4),
    random=st.floats(0, 1, exclude_max=True),
)
def test_a_pause_always_fits_into_the_time_and_the_number_of_retries(
    num_failed: int, retry_after: str | None, time_left_s: float, random: float
) -> None:
    pause_s = policy(10, random).pause_s(num_failed, retry_after, time_left_s=time_left_s)
    if pause_s is not None:
        assert num_failed <= 10
        assert 0.0 <= pause_s < time_left_s


@given(asked_s=st.floats(0, 1000), random=st.floats(0, 1, exclude_max=True))
def test_nobody_comes_back_before_the_server_said(asked_s: float, random: float) -> None:
    pause_s = policy(1, random).pause_s(1, str(asked_s), time_left_s=1e9)
    assert pause_s is not None
    assert pause_s >= asked_s


def test_pauses_double_up_to_a_limit_where_the_server_said_nothing() -> None:
    pauses_s = [policy(20, 0.999999).pause_s(n, None, time_left_s=1e9) for n in range(1, 9)]
    assert pauses_s == pytest.approx([1, 2, 4, 8, 16, MAX_PAUSE_S, MAX_PAUSE_S, MAX_PAUSE_S], rel=1e-3)


def test_no_retries_means_one_attempt() -> None:
    assert policy(0, 0.0).pause_s(1, "0", time_left_s=1e9) is None
