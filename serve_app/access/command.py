"""``likeness keys``: make a key, check a key file. What is heavy is imported where it is used."""

# ruff: noqa: T201  (printing is what this module is for)

from __future__ import annotations

import argparse
import datetime
import sys

from serve_app.exit_codes import ExitCode

_HOW_TO = """\
The key, shown this once; give it to {name} over a channel that you trust:

  {key}

For the key file (access.key_file), which keeps only its hash. A client with keys already gets one line more:

  {line}

and a new client its own entry:

  [[client]]
  name = "{name}"
  keys = [
    {line}
  ]
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand with its actions."""
    parser = subparsers.add_parser("keys", help="make API keys, check the file that holds their hashes")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    new = actions.add_parser("new", help="make a key; print it once, with its line for the key file")
    new.add_argument("name", metavar="NAME", help="the client's name, as logs and metrics will show it")
    new.set_defaults(run=_new)
    check = actions.add_parser("check", help="check a key file and list its clients")
    check.add_argument("file", metavar="FILE", help="path, or env:NAME")
    check.set_defaults(run=_check)


def _new(arguments: argparse.Namespace) -> int:
    from serve_app.access.key_file import KeyFileError, parse_keys
    from serve_app.access.keys import digest_of, new_key
    from serve_app.access.settings import ClientLimits

    key = new_key()
    line = f'{{ sha256 = "{digest_of(key).hex()}", created = {datetime.date.today().isoformat()} }},'
    try:
        parse_keys(f'[[client]]\nname = "{arguments.name}"\nkeys = [{line}]', "NAME", defaults=ClientLimits())
    except KeyFileError:
        print("likeness: a name is 1 to 40 letters, digits, dots, dashes and underscores", file=sys.stderr)
        return ExitCode.BAD_INPUT
    print(_HOW_TO.format(name=arguments.name, key=key, line=line), end="")
    return ExitCode.OK


def _check(arguments: argparse.Namespace) -> int:
    from serve_app.access.key_file import KeyFileError, read_keys
    from serve_app.access.settings import ClientLimits

    try:
        ring = read_keys(arguments.file, defaults=ClientLimits())
    except KeyFileError as error:
        print(f"likeness: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    for client, entries in ring.by_client().items():
        num_disabled = sum(entry.is_disabled for entry in entries)
        limits = entries[0].client.limits.model_dump(exclude_defaults=True)
        shown = ", ".join(f"{name} {_shown(value)}" for name, value in limits.items()) or "the settings' limits"
        disabled = f", {num_disabled} disabled" if num_disabled else ""
        print(f"{client}: {len(entries) - num_disabled} keys{disabled}; {shown}")
    return ExitCode.OK


def _shown(limit: float | str) -> str:
    return limit if isinstance(limit, str) else f"{limit:g}"
