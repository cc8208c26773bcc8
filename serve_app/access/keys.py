"""API keys: 256 random bits that only their owner has; here is no more than their SHA-256.

Slow hashes (bcrypt, scrypt) protect secrets that people choose, of which an attacker can try the likeliest: a stolen
table of fast hashes gives those away in hours. Nobody tries 2**256 keys at any speed, so a slow hash would protect
nothing here and cost every request its hundred milliseconds of CPU. Only keys that :func:`new_key` made are that
random; the key file takes hashes and cannot tell, so :mod:`serve_app.access.command` is the only way shown to make one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from typing import Final

from starlette.datastructures import Headers

from serve_app.access.settings import ClientLimits
from serve_app.errors import KeyDisabledError, KeyRequiredError

PREFIX: Final = "likeness_"
"""So that people, and programs that look for secrets in repositories, know what they see."""

_NUM_RANDOM_BYTES: Final = 32
_MAX_KEY_CHARS: Final = 200
_NUM_SELECTOR_BYTES: Final = 8


def new_key() -> str:
    """A key that nobody had before: ``likeness_`` and 43 characters for 256 random bits."""
    return PREFIX + secrets.token_urlsafe(_NUM_RANDOM_BYTES)


def digest_of(key: str) -> bytes:
    """The 32 bytes by which a key is known here."""
    return hashlib.sha256(key.encode()).digest()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """Somebody with keys. ``name`` stands in logs and metrics; a key never does."""

    name: str
    limits: ClientLimits


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KeyEntry:
    """One key of a client, who may have several: an old one and its successor, while it is exchanged."""

    digest: bytes
    client: Client
    is_disabled: bool


class KeyRing:
    """All keys, found by their digest.

    What a table reveals by its timing is how much of a *digest* is right, and whoever wanted to choose digests would
    have to invert SHA-256. Entries are found by the digest's first bytes all the same, and the whole is compared in
    constant time, so that this argument need not be right.
    """

    def __init__(self, entries: Iterable[KeyEntry]) -> None:
        self._entries: dict[bytes, list[KeyEntry]] = {}
        for entry in entries:
            self._entries.setdefault(entry.digest[:_NUM_SELECTOR_BYTES], []).append(entry)

    def by_client(self) -> dict[str, list[KeyEntry]]:
        """All keys of each client, by its name."""
        found: dict[str, list[KeyEntry]] = {}
        for entry in (entry for entries in self._entries.values() for entry in entries):
            found.setdefault(entry.client.name, []).append(entry)
        return found

    def client_of(self, headers: Headers) -> Client:
        """Whose key a request carries.

        Raises:
            KeyRequiredError: none, more than one, or one that is not known.
            KeyDisabledError: one that is no longer taken.
        """
        key = presented_key(headers)
        if len(key) <= _MAX_KEY_CHARS:
            digest = digest_of(key)
            for entry in self._entries.get(digest[:_NUM_SELECTOR_BYTES], ()):
                if hmac.compare_digest(entry.digest, digest):
                    if entry.is_disabled:
                        raise KeyDisabledError("this API key is disabled; ask the service's operator for another")
                    return entry.client
        raise KeyRequiredError("this API key is not known here; check that it was copied whole", is_wrong=True)


def presented_key(headers: Headers) -> str:
    """The key of ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``.

    Raises:
        KeyRequiredError: none, or more than one: which of them counts must not be a matter of luck.
    """
    keys = {value.strip() for value in headers.getlist("x-api-key")}
    for value in headers.getlist("authorization"):
        scheme, _, credentials = value.strip().partition(" ")
        if scheme.lower() == "bearer":
            keys.add(credentials.strip())
    keys.discard("")
    if not keys:
        raise KeyRequiredError("an API key is required; send it as Authorization: Bearer KEY, or as X-API-Key: KEY")
    if len(keys) > 1:
        raise KeyRequiredError("the request carries two different API keys; send one", is_wrong=True)
    return keys.pop()
