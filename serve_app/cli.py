"""The ``likeness`` command. Every subcommand imports what it needs when it runs, so that ``--help`` is instant."""

# ruff: noqa: T201  (printing is what this module is for)

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from serve_app import client_command, evaluate_command, models_command
from serve_app.access import command as keys_command
from serve_app.exit_codes import ExitCode
from serve_app.flags import positive

DEFAULT_CONFIG: Final = Path("serve_config.local.yaml")
# Words that captions of the embedded model's training hold; it was taught on nothing else.
DEMO_PROMPT: Final = (
    "A portrait of a woman with short brown hair, smiling, facing the camera, blue background, soft studio light"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; its exit code (see :class:`serve_app.exit_codes.ExitCode`)."""
    arguments = build_parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output is gone; Python would complain again while it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.LOCAL_FAILURE
    return status


def build_parser() -> argparse.ArgumentParser:
    """All subcommands and flags."""
    parser = argparse.ArgumentParser(prog="likeness", description="The same person in a new picture.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    client_command.add_parser(subparsers)
    evaluate_command.add_parser(subparsers)
    _add_serve(subparsers)
    _add_demo(subparsers)
    _add_check_config(subparsers)
    _add_models(subparsers)
    keys_command.add_parser(subparsers)
    return parser


def _add_serve(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("serve", help="run the application on a local Ray until Ctrl-C")
    _add_config_flags(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="port to listen on (default %(default)s)")
    parser.set_defaults(run=_serve)


def _add_demo(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("demo", help="run the application, send one request through the client, stop")
    _add_config_flags(parser)
    parser.add_argument("--prompt", default=DEMO_PROMPT)
    parser.add_argument("--reference-image", type=Path, required=True, metavar="FILE", help="the face to keep")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where to write the picture")
    parser.set_defaults(run=_demo)


def _add_config_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="Serve config (default %(default)s)"
    )
    parser.add_argument("--log-file", default="", metavar="FILE", help="keep what Ray, Serve and the replicas print")
    parser.add_argument("--ready-timeout", type=positive, default=300.0, metavar="SECONDS", help="default %(default)g")


def _add_check_config(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("check-config", help="check a Serve config without starting anything")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.set_defaults(run=_check_config)


def _add_models(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("models", help="prepare a model's files")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    untrained = actions.add_parser(
        "untrained",
        help="write a profile's files with random weights",
        description="Write all files of a profile with random weights: the real layouts at the real sizes, and "
        "pictures that show nothing.",
    )
    untrained.add_argument("--profile", default="embedded", help="packaged name or TOML file (default %(default)s)")
    untrained.add_argument("--model-dir", type=Path, required=True, metavar="FOLDER", help="made if missing")
    untrained.add_argument("--seed", type=int, default=0, help="default %(default)s")
    untrained.add_argument("--if-missing", action="store_true", help="do nothing where all files are there already")
    untrained.set_defaults(run=_write_untrained)
    models_command.add_actions(actions)


def _serve(arguments: argparse.Namespace) -> int:
    from serve_app.local import outside
    from serve_app.local.relay import Address

    if not _is_file(arguments.config):
        return ExitCode.BAD_INPUT
    address = Address(host=arguments.host, port=arguments.port)
    return outside.serve(
        arguments.config, address, ready_timeout_s=arguments.ready_timeout, log_file=arguments.log_file
    )


def _demo(arguments: argparse.Namespace) -> int:
    from serve_app.local import outside

    if not (_is_file(arguments.config) and _is_file(arguments.reference_image)):
        return ExitCode.BAD_INPUT
    client_arguments = [client_command.NAME, "--prompt", arguments.prompt]
    client_arguments += ["--reference-image", str(arguments.reference_image), "--output", str(arguments.output)]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    return outside.demo(
        arguments.config, client_arguments, ready_timeout_s=arguments.ready_timeout, log_file=arguments.log_file
    )


def _is_file(path: Path) -> bool:
    if not path.is_file():
        print(f"likeness: there is no file {path}", file=sys.stderr)
    return path.is_file()


def _check_config(arguments: argparse.Namespace) -> int:
    from serve_app.config_file import ConfigFileError, validate_serve_config

    try:
        validate_serve_config(arguments.file)
    except ConfigFileError as error:
        for problem in error.problems:
            print(f"{arguments.file}: {problem}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except OSError as error:
        print(f"likeness: can't read {arguments.file}: {error.strerror}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    print(f"{arguments.file} is valid.")
    return ExitCode.OK


def _write_untrained(arguments: argparse.Namespace) -> int:
    from engine.errors import ModelLoadError
    from engine.profile import load_profile

    try:
        profile = load_profile(arguments.profile)
    except ModelLoadError as error:
        print(f"likeness: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    missing = [name for name in dataclasses.astuple(profile.files) if not (arguments.model_dir / name).is_file()]
    if arguments.if_missing and not missing:
        return ExitCode.OK
    from engine.weights.untrained import write_untrained

    print(f"Writing random weights for {profile.name} into {arguments.model_dir} …", file=sys.stderr, flush=True)
    write_untrained(profile, arguments.model_dir, seed=arguments.seed)
    return ExitCode.OK


def _port(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 65_535:
        raise argparse.ArgumentTypeError(f"{text} is not a port from 1 to 65535")
    return value


if __name__ == "__main__":
    sys.exit(main())
