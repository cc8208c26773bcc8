"""The file that says who has keys. Read when it changes, so that a key is added or disabled without a restart.

    [[client]]
    name = "studio"            # in logs and metrics
    keys = [
      { sha256 = "5f7e…", created = 2026-03-01, disabled = true },
      { sha256 = "a91c…", created = 2026-05-01 },
    ]
    requests_per_minute = 60   # further: burst, device_s, window_s, max_concurrent, max_priority; else access.limits

Whoever can write the file can let themselves in, so a file that everybody may write is refused. Whoever can read it
learns names and limits and no key (:mod:`serve_app.access.keys`), which is worth a warning: Kubernetes mounts secrets
readable for all unless told otherwise.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import stat
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pydantic import Field, ValidationError

from serve_app.access.keys import Client, KeyEntry, KeyRing
from serve_app.access.settings import ClientLimits
from serve_app.metrics.table import MAX_CLIENTS
from serve_app.strict import StrictSettings

logger = logging.getLogger(__name__)

ENVIRONMENT: Final = "env:"
CHECK_PERIOD_S: Final = 2.0
"""How soon a change counts. Asking the file system takes 2 µs."""

_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}"


class KeyFileError(Exception):
    """The key file can't be used. Read by operators: it names the file, and never a hash."""


class _Key(StrictSettings):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: datetime.date | None = None
    disabled: bool = False


class _Client(ClientLimits):
    name: str = Field(pattern=f"^{_NAME}$")
    keys: list[_Key] = Field(min_length=1)


class _KeyFile(StrictSettings):
    client: list[_Client] = Field(min_length=1, max_length=MAX_CLIENTS)


class KeySource:
    """The keys as the file has them now, or had them last when it was good.

    Args:
        place: a path, or ``env:NAME``.
        defaults: limits of clients whose entry does not say.

    Raises:
        KeyFileError: it can't be used from the start. Later, what was read before goes on to count, and the log says
            so: a slip of the editor must neither lock everybody out nor let everybody in.
    """

    def __init__(
        self,
        place: str,
        *,
        defaults: ClientLimits,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place = place
        self._defaults = defaults
        self._environment = environment
        self._clock = clock
        self._checked_s = clock()
        self._version = self._look()
        self._ring = self._read()

    def ring(self) -> KeyRing:
        """The keys that count now."""
        now_s = self._clock()
        if now_s - self._checked_s >= CHECK_PERIOD_S:
            self._checked_s = now_s
            self._refresh()
        return self._ring

    def _refresh(self) -> None:
        version = self._look()
        if version == self._version:
            return
        self._version = version
        try:
            self._ring = self._read()
            logger.info("the key file was read again")
        except KeyFileError as error:
            logger.error("the keys read before go on to count: %s", error)

    def _look(self) -> tuple[int, ...]:
        """What changes when the file does."""
        if self._place.startswith(ENVIRONMENT):
            return ()
        try:
            status = Path(self._place).expanduser().stat()
        except OSError:
            return ()
        return (status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode)

    def _read(self) -> KeyRing:
        return read_keys(self._place, defaults=self._defaults, environment=self._environment)


def read_keys(place: str, *, defaults: ClientLimits, environment: Mapping[str, str] = os.environ) -> KeyRing:
    """All keys of a file (or of ``env:NAME``).

    Raises:
        KeyFileError: missing, unreadable, writable by everybody, not TOML, or not what the module's text describes.
    """
    if place.startswith(ENVIRONMENT):
        name = place.removeprefix(ENVIRONMENT)
        if name not in environment:
            raise KeyFileError(f"access.key_file is {place}, but there is no environment variable {name}")
        return parse_keys(environment[name], place, defaults=defaults)
    path = Path(place).expanduser()
    try:
        with path.open("rb") as file:
            _check_mode(os.fstat(file.fileno()).st_mode, place)
            text = file.read().decode("utf-8")
    except OSError as error:
        raise KeyFileError(f"{place}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"{place}: not UTF-8") from None
    return parse_keys(text, place, defaults=defaults)


def parse_keys(text: str, place: str, *, defaults: ClientLimits) -> KeyRing:
    """All keys of a file's text.

    Raises:
        KeyFileError: see :func:`read_keys`.
    """
    try:
        content = _KeyFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise KeyFileError(f"{place}: not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise KeyFileError(": ".join(part for part in (place, where, _plain(first["msg"])) if part)) from None
    for name, times in Counter(client.name for client in content.client).items():
        if times > 1:
            raise KeyFileError(f"{place}: client {name!r} appears {times} times; put all its keys into one entry")
    owners: dict[str, str] = {}
    for client in content.client:
        for key in client.keys:
            if key.sha256 in owners:
                raise KeyFileError(f"{place}: {owners[key.sha256]!r} and {client.name!r} have the same key")
            owners[key.sha256] = client.name
    return KeyRing(entry for client in content.client for entry in _entries(client, defaults))


def _entries(entry: _Client, defaults: ClientLimits) -> list[KeyEntry]:
    own = entry.model_dump(include=set(ClientLimits.model_fields) & entry.model_fields_set)
    client = Client(name=entry.name, limits=defaults.model_copy(update=own))
    return [KeyEntry(digest=bytes.fromhex(key.sha256), client=client, is_disabled=key.disabled) for key in entry.keys]


def _check_mode(mode: int, place: str) -> None:
    if mode & stat.S_IWOTH:
        raise KeyFileError(f"{place}: everybody may write it, and so let themselves in; chmod 640 it")
    if mode & stat.S_IROTH:
        logger.warning("%s is readable by everybody on this machine; chmod 640 it", place)


def _plain(message: str) -> str:
    return re.sub("^Value error, ", "", message)
