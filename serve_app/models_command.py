"""``likeness models pull | verify | list``: flags, and what people and scripts read of the outcome."""

# ruff: noqa: T201  (printing is what this module is for)

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine.weights.report import human_bytes
from serve_app.exit_codes import ExitCode

if TYPE_CHECKING:
    from engine.profile import ModelProfile
    from engine.weights.pull_errors import LicenceNotAcceptedError, PullError
    from engine.weights.verify import FileReport

DEFAULT_PROFILE: Final = "flux-dev"

_PULL_CODES: Final = """exit codes:
  0    every file is in the folder and checked
  1    this machine: no room, a folder that can't be written, another file in the way
  2    a licence is not accepted, access is refused, or there is nothing of that name to pull
  3    the hub is too busy, also after the retries
  4    the hub can't be reached, or the connection broke too often; the next run goes on from there
  5    the hub failed, or what came is not the file: size or checksum are wrong
  130  interrupted (Ctrl-C); the next run goes on from there

environment: HF_TOKEN (or the login of the hf command) for gated repositories, HF_ENDPOINT for a mirror"""

_VERIFY_CODES: Final = """exit codes:
  0    no check failed
  1    a file is missing, or a check failed
  2    no such profile"""


def add_actions(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the actions to ``likeness models``."""
    pull = _action(actions, "pull", "download a profile's files", _pull, epilog=_PULL_CODES)
    pull.add_argument("--model-dir", type=Path, required=True, metavar="FOLDER", help="made if missing")
    pull.add_argument(
        "--accept-licence", action="append", default=[], metavar="NAME", help="agree to a licence; may be repeated"
    )
    pull.add_argument("--token-file", type=Path, metavar="FILE", help="holds the access token (default: HF_TOKEN)")
    pull.add_argument("--replace", action="store_true", help="fetch over other files of the same names")

    verify = _action(actions, "verify", "check a model folder without loading it", _verify, epilog=_VERIFY_CODES)
    verify.add_argument("--model-dir", type=Path, required=True, metavar="FOLDER")
    verify.add_argument("--checksum", action="store_true", help="also take the SHA-256 of every file (minutes)")
    verify.add_argument("--json", action="store_true", help="print one JSON object on standard output")

    lister = _action(actions, "list", "what there is to download, and what is in a folder", _list, default_profile=None)
    lister.add_argument("--model-dir", type=Path, metavar="FOLDER", help="say what of it is there")
    lister.add_argument("--json", action="store_true", help="print one JSON object on standard output")


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    text: str,
    run: Callable[[argparse.Namespace], int],
    *,
    epilog: str | None = None,
    default_profile: str | None = DEFAULT_PROFILE,
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = default_profile or "all of them"
    parser.add_argument(
        "--profile", default=default_profile, help=f"packaged name or TOML file (default {default.replace('%', '%%')})"
    )
    parser.set_defaults(run=run)
    return parser


def _pull(arguments: argparse.Namespace) -> int:
    from engine.weights.catalog import remote_files, terms_of
    from engine.weights.hub import Hub
    from engine.weights.pull import pull
    from engine.weights.pull_errors import LicenceNotAcceptedError, NothingToPullError, PullError
    from serve_app.byte_progress import ByteProgress

    profile = _profile(arguments.profile)
    token = _token(arguments.token_file)
    if profile is None or token is None:
        return ExitCode.BAD_INPUT
    files = remote_files(profile)
    for terms, names in terms_of(files).items():
        print(f"{terms.name}: {', '.join(names)} ({terms.url})", file=sys.stderr)
    hub = Hub(endpoint=os.environ.get("HF_ENDPOINT"), token=token or None)
    try:
        with ByteProgress(sys.stderr) as progress:
            pulled = pull(
                files,
                arguments.model_dir,
                hub=hub,
                accepted_licences=arguments.accept_licence,
                is_replacing=arguments.replace,
                reporter=progress,
            )
    except LicenceNotAcceptedError as error:
        _explain_licences(error, arguments)
        return ExitCode.BAD_INPUT
    except NothingToPullError:
        print(f"likeness: no files of profile {profile.name} are on the hub: see docs/models.md", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except PullError as error:
        print(f"likeness: {error}", file=sys.stderr)
        return exit_code_of(error)
    for file in pulled:
        what = "downloaded" if file.fetched_bytes else "already there"
        checked = "size checked" if file.checked_against == "nobody" else f"SHA-256 as the {file.checked_against} says"
        print(f"{file.name}  {human_bytes(file.size_bytes)}  {what}, {checked}")
    return ExitCode.OK


def exit_code_of(error: PullError) -> ExitCode:
    """The exit code for an error of ``pull``."""
    from engine.weights import pull_errors as errors

    table: tuple[tuple[type[PullError], ExitCode], ...] = (
        (errors.NothingToPullError, ExitCode.BAD_INPUT),
        (errors.LicenceNotAcceptedError, ExitCode.BAD_INPUT),
        (errors.AccessRefusedError, ExitCode.BAD_INPUT),
        (errors.NotOnHubError, ExitCode.BAD_INPUT),
        (errors.OtherFileError, ExitCode.LOCAL_FAILURE),
        (errors.LocalFolderError, ExitCode.LOCAL_FAILURE),
        (errors.HubUnreachableError, ExitCode.UNREACHABLE),
        (errors.HubBusyError, ExitCode.BUSY),
        (errors.HubFailedError, ExitCode.SERVER_ERROR),
        (errors.WrongContentError, ExitCode.SERVER_ERROR),
    )
    return next(code for kind, code in table if isinstance(error, kind))


def _explain_licences(error: LicenceNotAcceptedError, arguments: argparse.Namespace) -> None:
    print("\nlikeness: nothing was downloaded: these weights come under terms to agree to first.", file=sys.stderr)
    for terms, names in error.covered.items():
        print(f"\n{terms.name}\n  full text: {terms.url}\n  covers:    {', '.join(names)}", file=sys.stderr)
        short = f"In short, and without replacing the text: {terms.summary}"
        print(textwrap.fill(short, width=100, initial_indent="  ", subsequent_indent="  "), file=sys.stderr)
    flags = [flag for name in arguments.accept_licence for flag in ("--accept-licence", name)]
    flags += [flag for terms in error.covered for flag in ("--accept-licence", terms.name)]
    command = ["likeness", "models", "pull", "--profile", arguments.profile, "--model-dir", str(arguments.model_dir)]
    print(f"\nIf you agree:\n  {shlex.join([*command, *flags])}", file=sys.stderr)


def _verify(arguments: argparse.Namespace) -> int:
    profile = _profile(arguments.profile)
    if profile is None:
        return ExitCode.BAD_INPUT
    from engine.weights.verify import verify
    from serve_app.byte_progress import ByteProgress

    with ByteProgress(sys.stderr) as progress:
        reports = verify(profile, arguments.model_dir, with_checksums=arguments.checksum, reporter=progress)
    is_good = all(report.is_good for report in reports)
    if arguments.json:
        files = [_report_as_json(report) for report in reports]
        print(json.dumps({"profile": profile.name, "is_good": is_good, "files": files}))
    else:
        for report in reports:
            _print_report(report)
        print(f"{arguments.model_dir}: {'no check failed' if is_good else 'not as it has to be'}.")
    return ExitCode.OK if is_good else ExitCode.LOCAL_FAILURE


def _report_as_json(report: FileReport) -> dict[str, Any]:
    checks = {name: {"outcome": check.outcome, "detail": check.detail} for name, check in report.checks.items()}
    return {"role": report.role, "name": report.name, "size_bytes": report.size_bytes, "checks": checks}


def _print_report(report: FileReport) -> None:
    size = "" if report.size_bytes is None else f"  {human_bytes(report.size_bytes)}"
    print(f"{report.name}  ({report.role}){size}")
    for name, check in report.checks.items():
        print(f"  {name + ':':10} {check.outcome}{': ' + check.detail if check.detail else ''}")


def _list(arguments: argparse.Namespace) -> int:
    from engine.profile import packaged_profiles
    from serve_app.models_listing import as_text, listed

    names = packaged_profiles() if arguments.profile is None else (arguments.profile,)
    profiles = [_profile(name) for name in names]
    lists = [listed(profile, arguments.model_dir) for profile in profiles if profile is not None]
    if len(lists) < len(profiles):
        return ExitCode.BAD_INPUT
    print(json.dumps({"profiles": lists}) if arguments.json else "\n\n".join(map(as_text, lists)))
    return ExitCode.OK


def _profile(name: str) -> ModelProfile | None:
    """The profile; None after saying why there is none."""
    from engine.errors import ModelLoadError
    from engine.profile import load_profile

    try:
        return load_profile(name)
    except ModelLoadError as error:
        print(f"likeness: {error}", file=sys.stderr)
        return None


def _token(path: Path | None) -> str | None:
    """The access token: empty where there is none, None after saying why the one there is can't be one."""
    if path is None:
        from huggingface_hub import get_token

        source, token = "HF_TOKEN", get_token() or ""
    else:
        try:
            source, token = str(path), path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            print(f"likeness: can't read {path}: {error.strerror}", file=sys.stderr)
            return None
    is_word = token.isascii() and token.isprintable() and " " not in token
    if not is_word or (not token and path is not None):
        print(f"likeness: {source} does not hold an access token: one word on one line", file=sys.stderr)
        return None
    return token
