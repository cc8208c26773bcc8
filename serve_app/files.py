"""The client's two files: the reference picture that goes out, the drawn one that comes in."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from serve_app.data_url import Picture
from serve_app.sniff import HEAD_BYTES, media_type_of

MAX_REFERENCE_BYTES = 20 * 2**20
"""Larger files are refused here, before they are read: phone photos have 2-12 MB, and base64 adds a third."""


class InputFileError(Exception):
    """The reference file can't be used. The message says what to change."""


class OutputFileError(Exception):
    """The picture can't be written where it was asked for."""


def read_picture(path: Path, *, max_bytes: int = MAX_REFERENCE_BYTES) -> Picture:
    """The picture in a file, its type taken from its bytes.

    Raises:
        InputFileError: no such file, unreadable, too large, empty or not a picture of an accepted kind.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise InputFileError(f"can't read {path}: {error.strerror}") from error
    if len(data) > max_bytes:
        raise InputFileError(f"{path} is larger than {max_bytes / 2**20:.0f} MiB: scale the picture down")
    if not data:
        raise InputFileError(f"{path} is empty")
    media_type = media_type_of(data[:HEAD_BYTES])
    if media_type is None:
        raise InputFileError(f"{path} is not a JPEG, PNG, WebP or GIF picture: convert it to one of these")
    return Picture(data=data, media_type=media_type)


def check_writable(path: Path) -> None:
    """Find out before the work, not after it, whether the picture could be written.

    Raises:
        OutputFileError: the folder is missing or not writable, or the path is a folder itself.
    """
    if path.is_dir():
        raise OutputFileError(f"{path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise OutputFileError(f"the folder {path.parent} does not exist: create it first")
    temporary = _beside(path)
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise OutputFileError(f"can't write into {path.parent}: {error.strerror}") from error
    temporary.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` whole or not at all: what was there before stays until the new file is complete on disk.

    Raises:
        OutputFileError: it could not be written; nothing has changed.
    """
    temporary = _beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputFileError(f"can't write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    # In the same folder: a rename is atomic only within one file system.
    return path.parent / f".{path.name[:64]}.{secrets.token_hex(4)}.part"
