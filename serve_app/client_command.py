"""``likeness flux-ipadapter-faceid``: flags, and what people and scripts read of the outcome."""

# ruff: noqa: T201  (printing is what this module is for)

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from serve_app import data_url
from serve_app.client import API_KEY_VARIABLE, BadKeyError, Client, ImageFormat, api_key_from
from serve_app.client_answer import ClientError, DrawnPicture, printable
from serve_app.client_events import ServerEvent, progress_of
from serve_app.exit_codes import ExitCode
from serve_app.files import InputFileError, OutputFileError, check_writable, read_picture, write_atomically
from serve_app.flags import finite, positive, whole
from serve_app.progress import ProgressLine

NAME: Final = "flux-ipadapter-faceid"
DEFAULT_URL: Final = "http://127.0.0.1:8000"

_FORMATS_BY_SUFFIX: Final[dict[str, ImageFormat]] = {".png": "png", ".webp": "webp"}
"""Any other name gets a JPEG, as it always did."""

_EXIT_CODES: Final = """exit codes:
  0    the picture is written
  1    it could not be written to --output
  2    the flags, the reference file or the request are wrong; unchanged, it will fail again
  3    the server was too busy, also after the retries
  4    no answer: nothing listens at --url, the connection broke, or --timeout was over
  5    the server failed, or sent something that is not the picture
  130  interrupted (Ctrl-C)"""


_FURTHER_FIELDS: Final = (
    "guidance",
    "face_policy",
    "scheduler",
    "priority",
    "score",
    "num_candidates",
    "min_similarity",
)
"""Flags by the name of their field."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand with its flags."""
    parser = subparsers.add_parser(
        NAME,
        help="draw the person of a picture: send one request to a running service",
        description="Draw the person of a reference picture: send one request to a running service. Where that asks "
        f"for an API key, put it into the environment as {API_KEY_VARIABLE}.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prompt", required=True, help="what to draw")
    parser.add_argument("--reference-image", required=True, type=Path, metavar="FILE", help="the face to keep")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="where to write the picture")
    parser.add_argument("--negative-prompt", default="", help="what to steer away from; needs --cfg above 1")
    parser.add_argument("--width", type=int, default=1024, help="pixels, a multiple of 16 (default %(default)s)")
    parser.add_argument("--height", type=int, default=1024, help="pixels, a multiple of 16 (default %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="sampler steps (default %(default)s)")
    parser.add_argument("--cfg", type=finite, default=1.0, help="true guidance; 1.0 is off (default %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="-1 draws a random one (default %(default)s)")
    parser.add_argument(
        "--ipadapter-strength", type=finite, default=0.8, help="0.0 to 1.0: weight of the face (default %(default)s)"
    )
    parser.add_argument("--face-provider", choices=("CPU", "GPU"), default="CPU", help="where the face is encoded")
    parser.add_argument("--guidance", type=finite, help="the model's distilled guidance (the service's default: 3.5)")
    parser.add_argument(
        "--face-policy",
        choices=("prefer", "require", "ignore"),
        help="crop the face if there is one, insist on one, or take the whole picture (default: the service's)",
    )
    parser.add_argument(
        "--scheduler", choices=("simple", "flux"), help="noise schedule (the service's default: simple)"
    )
    parser.add_argument(
        "--max-wait", type=positive, metavar="SECONDS", help="refuse, or give up, what takes longer (default: wait)"
    )
    parser.add_argument(
        "--priority",
        choices=("low", "normal", "high"),
        help="among all requests; high takes an API key (default: normal)",
    )
    parser.add_argument(
        "--score", action="store_true", default=None, help="measure how alike the faces are, 0 to 1; 0.5 is the same"
    )
    parser.add_argument(
        "--num-candidates", type=int, metavar="N", help="draw so many and take the most alike; all are charged"
    )
    parser.add_argument(
        "--min-similarity", type=finite, metavar="S", help="draw candidates until one reaches this, 0 to 1; else fail"
    )
    parser.add_argument("--url", default=DEFAULT_URL, help="the service (default %(default)s)")
    parser.add_argument("--format", choices=("jpeg", "png", "webp"), help="default: by the name of --output, else jpeg")
    parser.add_argument(
        "--timeout", type=positive, default=300.0, metavar="SECONDS", help="for everything (default %(default)g)"
    )
    parser.add_argument(
        "--retries",
        type=whole(least=0),
        default=5,
        metavar="N",
        help="after answers of 429 or 503 (default %(default)s)",
    )
    parser.add_argument(
        "--progress", action="store_true", help="tell of every step, also where standard error is no terminal"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, *, make_client: Callable[..., Client] = Client) -> int:
    """Send the request that the flags describe; the exit code."""
    try:
        picture = _draw(arguments, make_client)
        write_atomically(arguments.output, picture.data)
    except InputFileError as error:
        return _fail(arguments, str(error), "InputFile", ExitCode.BAD_INPUT)
    except BadKeyError as error:
        return _fail(arguments, str(error), "BadKey", ExitCode.BAD_INPUT)
    except OutputFileError as error:
        return _fail(arguments, str(error), "OutputFile", ExitCode.LOCAL_FAILURE)
    except ClientError as error:
        return _fail(arguments, str(error), error.error_type, error.exit_code)
    if arguments.json:
        print(json.dumps(as_json(picture, arguments.output)))
    else:
        for line in in_words(picture, arguments.output):
            print(line)
    for warning in picture.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    return ExitCode.OK


def request_body(arguments: argparse.Namespace, reference_image: str) -> dict[str, Any]:
    """The contract's JSON object. Fields that the contract did not always have are left out where not asked for."""
    body: dict[str, Any] = {
        "prompt": arguments.prompt,
        "reference_image": reference_image,
        "negative_prompt": arguments.negative_prompt,
        "width": arguments.width,
        "height": arguments.height,
        "steps": arguments.steps,
        "cfg": arguments.cfg,
        "seed": arguments.seed,
        "ipadapter_strength": arguments.ipadapter_strength,
        "face_provider": arguments.face_provider,
    }
    further = {name: getattr(arguments, name) for name in _FURTHER_FIELDS}
    further["max_wait_s"] = arguments.max_wait
    return body | {name: value for name, value in further.items() if value is not None}


def as_json(picture: DrawnPicture, output: Path) -> dict[str, Any]:
    """What ``--json`` prints: everything but the picture's bytes."""
    fields = {field.name: getattr(picture, field.name) for field in dataclasses.fields(picture) if field.name != "data"}
    return {"output": str(output), "num_bytes": len(picture.data), **fields}


def in_words(picture: DrawnPicture, output: Path) -> list[str]:
    """What people read. Callers' scripts look for the three headers by name."""
    kilobytes = len(picture.data) / 1000
    drawn = f", drawn at {picture.drawn_size}" if picture.drawn_size not in (None, _size(picture)) else ""
    lines = [
        f"Saved {output} ({_size(picture)} {picture.media_type.removeprefix('image/')}{drawn}, {kilobytes:.0f} kB)"
    ]
    if picture.cost_usd is not None:
        lines.append(f"X-Cost-USD: {picture.cost_usd:.6f}")
    if picture.execution_time_s is not None:
        lines.append(f"X-Execution-Time-Sec: {picture.execution_time_s:.3f}")
    if picture.gpu_type is not None:
        lines.append(f"X-GPU-Type: {picture.gpu_type}")
    if picture.seed is not None:
        lines.append(f"Seed: {picture.seed}")
    if picture.face_similarity is not None:
        lines.append(f"Face similarity: {picture.face_similarity:g}")
    return lines


def _draw(arguments: argparse.Namespace, make_client: Callable[..., Client]) -> DrawnPicture:
    reference = read_picture(arguments.reference_image)
    check_writable(arguments.output)
    image_format: ImageFormat = arguments.format or _FORMATS_BY_SUFFIX.get(arguments.output.suffix.lower(), "jpeg")
    is_watched = arguments.progress or sys.stderr.isatty()
    is_quiet = arguments.json and not is_watched
    with ProgressLine(sys.stderr, "connecting", is_quiet=is_quiet) as line:
        client = make_client(
            url=arguments.url,
            timeout_s=arguments.timeout,
            max_retries=arguments.retries,
            on_progress=line.update,
            on_event=functools.partial(_show, line) if is_watched else None,
            api_key=api_key_from(os.environ),
        )
        return client.draw(request_body(arguments, data_url.build(reference)), image_format)


def _show(line: ProgressLine, event: ServerEvent) -> None:
    if (progress := progress_of(event)) is not None:
        line.update(printable(progress.text), progress.fraction)


def _fail(arguments: argparse.Namespace, message: str, error_type: str, exit_code: ExitCode) -> int:
    print(f"likeness: {message}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"error": message, "type": error_type, "exit_code": int(exit_code)}))
    return exit_code


def _size(picture: DrawnPicture) -> str:
    return f"{picture.width_px}x{picture.height_px}"
