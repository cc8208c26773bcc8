"""Keys, the file that holds their hashes, and whose request it is."""

from __future__ import annotations

import hashlib
import logging
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.datastructures import Headers

from serve_app.access.address import AddressBook
from serve_app.access.key_file import KeyFileError, KeySource, parse_keys, read_keys
from serve_app.access.keys import PREFIX, KeyRing, digest_of, new_key
from serve_app.access.settings import AccessSettings, ClientLimits
from serve_app.cli import main
from serve_app.errors import KeyDisabledError, KeyRequiredError
from tests.test_access_limits import Clock

DEFAULTS = ClientLimits(requests_per_minute=10.0, max_concurrent=2)


def entry(name: str, *keys: str, disabled: tuple[str, ...] = (), more: str = "") -> str:
    """A client's entry in a key file."""
    lines = [
        f'  {{ sha256 = "{digest_of(key).hex()}", created = 2026-05-01, disabled = {str(key in disabled).lower()} }},'
        for key in keys
    ]
    return "\n".join(["[[client]]", f'name = "{name}"', "keys = [", *lines, "]", more, ""])


def bearer(key: str) -> Headers:
    return Headers({"Authorization": f"Bearer {key}"})


def name_of(ring: KeyRing, headers: Headers) -> str:
    return ring.client_of(headers).name


def test_keys_are_long_random_and_recognisable() -> None:
    keys = {new_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert all(key.startswith(PREFIX) and len(key) == len(PREFIX) + 43 for key in keys)
    assert digest_of("likeness_x") == hashlib.sha256(b"likeness_x").digest()


def test_a_key_is_taken_in_both_headers_and_under_any_spelling_of_bearer() -> None:
    key = new_key()
    ring = parse_keys(entry("studio", key), "f", defaults=DEFAULTS)
    for headers in (
        {"Authorization": f"Bearer {key}"},
        {"authorization": f"bearer   {key} "},
        {"X-API-Key": key},
        {"X-API-Key": key, "Authorization": f"Bearer {key}"},
        {"X-API-Key": key, "Authorization": "Basic dXNlcjpwYXNz"},  # a proxy's
    ):
        assert name_of(ring, Headers(headers)) == "studio"


@pytest.mark.parametrize(
    ("headers", "is_wrong"),
    [
        ({}, False),
        ({"Authorization": "Basic dXNlcjpwYXNz"}, False),
        ({"Authorization": "Bearer "}, False),
        ({"Authorization": "Bearer"}, False),
        ({"X-API-Key": ""}, False),
        ({"Authorization": "Bearer likeness_wrong"}, True),
        ({"X-API-Key": "x" * 100_000}, True),
        ({"X-API-Key": "schlüssel"}, True),
        ({"X-API-Key": "KEY", "Authorization": "Bearer other"}, True),
    ],
)
def test_everything_else_is_refused(headers: dict[str, str], is_wrong: bool) -> None:
    ring = parse_keys(entry("studio", new_key()), "f", defaults=DEFAULTS)
    with pytest.raises(KeyRequiredError) as caught:
        ring.client_of(Headers(headers))
    assert ('error="invalid_token"' in caught.value.challenge) == is_wrong
    assert caught.value.challenge.startswith('Bearer realm="likeness"')


def test_a_key_that_shares_the_beginning_of_its_digest_with_another_is_not_that_other() -> None:
    """Entries are found by eight bytes and compared whole."""
    key = new_key()
    ring = parse_keys(entry("studio", key), "f", defaults=DEFAULTS)
    (found,) = ring._entries[digest_of(key)[:8]]
    forged = found.digest[:8] + bytes(24)
    ring._entries[forged[:8]] = [type(found)(digest=forged, client=found.client, is_disabled=False)]
    with pytest.raises(KeyRequiredError):
        ring.client_of(bearer(key))


def test_keys_are_exchanged_one_by_one() -> None:
    old, new = new_key(), new_key()
    both = parse_keys(entry("studio", old, new), "f", defaults=DEFAULTS)
    assert name_of(both, bearer(old)) == name_of(both, bearer(new)) == "studio"
    after = parse_keys(entry("studio", old, new, disabled=(old,)), "f", defaults=DEFAULTS)
    assert name_of(after, bearer(new)) == "studio"
    with pytest.raises(KeyDisabledError):
        after.client_of(bearer(old))


def test_an_entry_says_what_it_says_and_the_settings_the_rest() -> None:
    key = new_key()
    ring = parse_keys(entry("studio", key, more="requests_per_minute = 90\ndevice_s = 600.0"), "f", defaults=DEFAULTS)
    assert ring.client_of(bearer(key)).limits == ClientLimits(
        requests_per_minute=90.0, device_s=600.0, max_concurrent=2
    )


KEY = new_key()
HASH = digest_of(KEY).hex()

BAD_FILES = {
    "not TOML": ("[[client", "not TOML"),
    "empty": ("", "client: Field required"),
    "no clients": ("client = []", "client: List should have at least 1"),
    "a key instead of its hash": (entry("a", KEY).replace(HASH, KEY), "client.0.keys.0.sha256"),
    "half a hash": (entry("a", KEY).replace(HASH, HASH[:40]), "client.0.keys.0.sha256"),
    "no keys": ('[[client]]\nname = "a"\nkeys = []', "client.0.keys"),
    "no name": (entry("a", KEY).replace('name = "a"', ""), "client.0.name: Field required"),
    "a name that is a sentence": (entry("my friend", KEY), "client.0.name"),
    "a name twice": (entry("a", KEY) + entry("a", new_key()), "client 'a' appears 2 times; put all its keys into one"),
    "a key twice": (entry("a", KEY) + entry("b", KEY), "'a' and 'b' have the same key"),
    "an unknown word": (entry("a", KEY, more="request_per_minute = 3"), "did you mean 'requests_per_minute'?"),
    "a limit of nothing": (entry("a", KEY, more="requests_per_minute = 0"), "requests_per_minute"),
    "a word for a number": (entry("a", KEY, more='max_concurrent = "many"'), "max_concurrent"),
}


@pytest.mark.parametrize(("text", "says"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_broken_file_is_refused_with_what_is_wrong_and_no_hash(text: str, says: str) -> None:
    with pytest.raises(KeyFileError) as caught:
        parse_keys(text, "keys.toml", defaults=DEFAULTS)
    assert says in str(caught.value)
    assert str(caught.value).startswith("keys.toml: ")
    assert HASH[:40] not in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="can't be read: No such file"):
        read_keys(str(tmp_path / "none.toml"), defaults=DEFAULTS)
    with pytest.raises(KeyFileError, match="can't be read: Is a directory"):
        read_keys(str(tmp_path), defaults=DEFAULTS)
    (tmp_path / "keys.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(KeyFileError, match="not UTF-8"):
        read_keys(str(tmp_path / "keys.toml"), defaults=DEFAULTS)


def test_who_may_write_the_file_matters_and_who_may_read_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(entry("a", KEY))
    path.chmod(0o640)
    read_keys(str(path), defaults=DEFAULTS)
    assert not caplog.records
    path.chmod(0o644)
    read_keys(str(path), defaults=DEFAULTS)
    assert "readable by everybody" in caplog.text
    path.chmod(0o666)
    with pytest.raises(KeyFileError, match="everybody may write it"):
        read_keys(str(path), defaults=DEFAULTS)


def test_the_files_text_may_stand_in_the_environment() -> None:
    source = KeySource("env:LIKENESS_KEYS", defaults=DEFAULTS, environment={"LIKENESS_KEYS": entry("a", KEY)})
    assert name_of(source.ring(), bearer(KEY)) == "a"
    with pytest.raises(KeyFileError, match="no environment variable LIKENESS_KEYS"):
        KeySource("env:LIKENESS_KEYS", defaults=DEFAULTS, environment={})


def test_a_changed_file_counts_soon_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    path, clock, other = tmp_path / "keys.toml", Clock(), new_key()
    path.write_text(entry("a", KEY))
    path.chmod(0o640)
    source = KeySource(str(path), defaults=DEFAULTS, clock=clock)

    def change(text: str) -> KeyRing:
        replacement = tmp_path / "new"
        replacement.write_text(text)
        replacement.chmod(0o640)
        replacement.replace(path)
        clock.now_s += 2.0
        return source.ring()

    assert name_of(source.ring(), bearer(KEY)) == "a"
    assert name_of(change(entry("a", KEY) + entry("b", other)), bearer(other)) == "b"
    assert not caplog.records
    with pytest.raises(KeyDisabledError):
        change(entry("a", KEY, disabled=(KEY,)) + entry("b", other)).client_of(bearer(KEY))
    for broken in ("[[client", ""):
        assert name_of(change(broken), bearer(other)) == "b"
        assert "the keys read before go on to count" in caplog.text
    path.unlink()
    clock.now_s += 2.0
    assert name_of(source.ring(), bearer(other)) == "b"
    assert name_of(change(entry("c", KEY)), bearer(KEY)) == "c"


def test_a_file_that_does_not_change_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, clock = tmp_path / "keys.toml", Clock()
    path.write_text(entry("a", KEY))
    source = KeySource(str(path), defaults=DEFAULTS, clock=clock)
    monkeypatch.setattr("serve_app.access.key_file.read_keys", None)  # a second reading would fail
    for _ in range(5):
        clock.now_s += 2.0
        assert name_of(source.ring(), bearer(KEY)) == "a"


def scope(peer: str, *forwarded: str, port: int = 40_000) -> dict[str, Any]:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    return {"type": "http", "client": (peer, port), "headers": headers}


TRUSTED = ("10.0.0.0/8", "2001:db8::/32", "192.168.1.1")

ADDRESSES = {
    "nobody is trusted": ((), scope("9.9.9.9", "1.1.1.1"), "9.9.9.9"),
    "a stranger's word": (TRUSTED, scope("9.9.9.9", "1.1.1.1"), "9.9.9.9"),
    "a proxy's word": (TRUSTED, scope("10.0.0.1", "1.1.1.1"), "1.1.1.1"),
    "what the client wrote itself": (TRUSTED, scope("10.0.0.1", "7.7.7.7, 1.1.1.1"), "1.1.1.1"),
    "two proxies": (TRUSTED, scope("10.0.0.1", "7.7.7.7, 1.1.1.1, 192.168.1.1"), "1.1.1.1"),
    "two headers": (TRUSTED, scope("10.0.0.1", "7.7.7.7, 1.1.1.1", "10.3.3.3"), "1.1.1.1"),
    "nonsense": (TRUSTED, scope("10.0.0.1", "1.1.1.1, <script>"), "10.0.0.1"),
    "nonsense further left": (TRUSTED, scope("10.0.0.1", "<script>, 1.1.1.1"), "1.1.1.1"),
    "a proxy without a word": (TRUSTED, scope("10.0.0.1"), "10.0.0.1"),
    "only proxies": (TRUSTED, scope("10.0.0.1", "10.0.0.2"), "10.0.0.2"),
    "with a port": (TRUSTED, scope("10.0.0.1", "1.1.1.1:567"), "1.1.1.1"),
    "IPv6 with a port": (TRUSTED, scope("10.0.0.1", "[2a00:1:2:3:4::5]:567"), "2a00:1:2:3::/64"),
    "IPv6": (TRUSTED, scope("2001:db8::1", "2a00:1:2:3:4::5"), "2a00:1:2:3::/64"),
    "IPv4 in IPv6": ((), scope("::ffff:9.9.9.9"), "9.9.9.9"),
    "uvicorn believed somebody, we do not": ((), scope("6.6.6.6", "6.6.6.6", port=0), "127.0.0.1"),
    "uvicorn believed somebody, so do we": (TRUSTED, scope("6.6.6.6", "7.7.7.7, 6.6.6.6", port=0), "6.6.6.6"),
    "no address": ((), {"type": "http", "client": None, "headers": []}, "unknown"),
    "a socket's name": ((), scope("testclient"), "unknown"),
}


@pytest.mark.parametrize(("trusted", "scope", "name"), ADDRESSES.values(), ids=ADDRESSES)
def test_a_client_is_who_a_trusted_proxy_says(trusted: tuple[str, ...], scope: dict[str, Any], name: str) -> None:
    assert AddressBook(trusted).client_of(scope) == name


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("open_paths", ["/flux-ipadapter-faceid"], "can't be open to all; only /, /docs"),
        ("open_paths", ["/docs/"], "can't be open to all"),
        ("trusted_proxies", ["0.0.0.0/0"], "every address there is"),
        ("trusted_proxies", ["::/0"], "every address there is"),
        ("trusted_proxies", ["10.0.0.1/8"], "has host bits set"),
        ("trusted_proxies", ["balancer.example.org"], "does not appear to be an IPv4 or IPv6 network"),
        ("allowed_origins", ["*"], "is no origin"),
        ("allowed_origins", ["https://example.org/"], "is no origin"),
        ("limits", {"requests_per_minute": 0.0}, "greater than 0"),
        ("limits", {"device_s": float("inf")}, "finite"),
    ],
)
def test_settings_that_open_too_much_are_refused(setting: str, value: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        AccessSettings.model_validate({setting: value})


def test_a_new_key_is_printed_once_with_a_line_that_lets_it_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", "studio"]) == 0
    told = capsys.readouterr().out
    (key,) = re.findall(rf"{PREFIX}\S+", told)
    block = textwrap.dedent(told[told.index("  [[client]]") :])
    assert name_of(parse_keys(block, "f", defaults=DEFAULTS), bearer(key)) == "studio"
    assert main(["keys", "new", "studio"]) == 0
    assert key not in capsys.readouterr().out, "the next one is another"


@pytest.mark.parametrize("name", ["", "two words", 'a"\nname = "b', "x" * 41])
def test_a_name_that_can_not_be_a_label_gets_no_key(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", name]) == 2
    told = capsys.readouterr()
    assert not told.out
    assert "a name is 1 to 40 letters" in told.err


def test_a_key_file_is_checked_and_told_without_a_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, old = tmp_path / "keys.toml", new_key()
    path.write_text(
        entry("studio", KEY, old, disabled=(old,), more='device_s = 60.0\nmax_priority = "low"')
        + entry("lab", new_key())
    )
    assert main(["keys", "check", str(path)]) == 0
    told = capsys.readouterr().out
    assert told.splitlines() == [
        "studio: 1 keys, 1 disabled; device_s 60, max_priority low",
        "lab: 1 keys; the settings' limits",
    ]
    path.write_text(entry("studio", KEY).replace(HASH, HASH[:40]))
    assert main(["keys", "check", str(path)]) == 2
    assert "client.0.keys.0.sha256" in capsys.readouterr().err


def test_a_file_in_the_home_folder_is_read_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path, clock, other = tmp_path / "keys.toml", Clock(), new_key()
    path.write_text(entry("a", KEY))
    path.chmod(0o640)
    source = KeySource("~/keys.toml", defaults=DEFAULTS, clock=clock)
    path.write_text(entry("a", other, KEY))
    clock.now_s += 2.0
    assert name_of(source.ring(), bearer(other)) == "a"
