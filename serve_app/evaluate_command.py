"""``likeness evaluate``: flags, and what people and scripts read of the outcome."""

# ruff: noqa: T201  (printing is what this module is for)

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from serve_app.client import BadKeyError, Client, api_key_from
from serve_app.client_answer import DrawnPicture
from serve_app.client_command import DEFAULT_URL
from serve_app.exit_codes import ExitCode
from serve_app.flags import positive, whole
from serve_app.progress import ProgressLine

if TYPE_CHECKING:
    from engine.face.identity import IdentityModel
    from serve_app.data_url import Picture
    from serve_app.evaluate.plan import Job
    from serve_app.evaluate.run import Request

NAME: Final = "evaluate"
MAX_PICTURES: Final = 500
"""More must be asked for: pictures cost money."""

_DESCRIPTION: Final = """Measure how well a service keeps the person: draw everyone in a folder of photos with every
prompt, and compare the pictures with the photos by a face-recognition network that took no part in making them.

  likeness evaluate --references photos --output output/evaluation
  likeness evaluate --references photos --output output/strengths --set steps=8 \\
      --endpoint "weak=http://127.0.0.1:8000 ipadapter_strength=0.4" --endpoint strong=http://127.0.0.1:8000

--references holds photos, one a person, or folders of photos, one a person: then the photo called "reference", or
the first by name, is sent, and the others are compared with. --output gets every picture, report.html and report.json;
run again with the same --output, it draws only what is missing. Nothing is written elsewhere. An API key is taken from
the environment, LIKENESS_API_KEY.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand with its flags."""
    parser = subparsers.add_parser(
        NAME,
        help="measure how well the person is kept: draw people from photos, compare, write a report",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--references", type=Path, required=True, metavar="FOLDER", help="photos of people")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="made if missing")
    parser.add_argument(
        "--endpoint",
        action="append",
        metavar="NAME=URL [FIELD=VALUE …]",
        help=f"a service, and fields of the request; once or several times (default service={DEFAULT_URL})",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of every request, such as steps=8"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="one a line (default: a packaged set of eight)")
    parser.add_argument("--seeds", type=whole(least=1), default=1, help="pictures a prompt (default %(default)s)")
    parser.add_argument("--concurrency", type=whole(least=1), default=2, help="requests at once (default %(default)s)")
    parser.add_argument(
        "--max-pictures", type=whole(least=1), default=MAX_PICTURES, help="in all (default %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=positive, default=300.0, metavar="SECONDS", help="a picture (default %(default)g)"
    )
    parser.add_argument(
        "--retries", type=whole(least=0), default=20, metavar="N", help="after 429 and 503 (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.set_defaults(run=run)


def run(
    arguments: argparse.Namespace,
    *,
    make_client: Callable[..., Client] = Client,
    open_model: Callable[[], IdentityModel] | None = None,
) -> int:
    """Evaluate; the exit code."""
    # Here, not at the top: the command line must start without numpy.
    from engine.errors import ModelLoadError
    from serve_app.evaluate import report
    from serve_app.evaluate.draw import DrawingStoppedError
    from serve_app.evaluate.people import PeopleError
    from serve_app.evaluate.plan import PlanError
    from serve_app.evaluate.run import PAGE_NAME, evaluate
    from serve_app.files import InputFileError, OutputFileError

    def draw(job: Job, reference: Picture) -> DrawnPicture:
        client = make_client(
            url=job.endpoint.url, timeout_s=arguments.timeout, max_retries=arguments.retries, api_key=api_key
        )
        return client.draw(job.body(reference))

    try:
        api_key = api_key_from(os.environ)
        request = _request(arguments)
        model = (open_model or _open_model)()
        with ProgressLine(sys.stderr, "starting", is_quiet=arguments.json and not sys.stderr.isatty()) as line:
            numbers = evaluate(request, model, draw, functools.partial(line.update, is_count=True))
    except (PeopleError, PlanError, InputFileError, BadKeyError) as error:
        return _fail(str(error), ExitCode.BAD_INPUT)
    except (ModelLoadError, OutputFileError) as error:
        return _fail(str(error), ExitCode.LOCAL_FAILURE)
    except DrawingStoppedError as error:
        return _fail(str(error), error.exit_code)
    for words in [json.dumps(numbers)] if arguments.json else report.in_words(numbers):
        print(words)
    print(f"Report: {request.folder / PAGE_NAME} (it holds people's faces)", file=sys.stderr)
    num_failed = sum(side["num_failed"] for side in numbers["endpoints"].values())
    if num_failed:
        print(f"likeness: {num_failed} pictures failed; run again to draw them", file=sys.stderr)
    return ExitCode.SERVER_ERROR if num_failed else ExitCode.OK


def _request(arguments: argparse.Namespace) -> Request:
    from serve_app.evaluate.people import read_people
    from serve_app.evaluate.plan import PROMPTS, PlanError, parse_endpoint, parse_fields, read_prompts
    from serve_app.evaluate.run import Request

    common = parse_fields(arguments.set)
    endpoints = [parse_endpoint(text, common) for text in arguments.endpoint or [f"service={DEFAULT_URL}"]]
    people = read_people(arguments.references)
    prompts = read_prompts(arguments.prompts) if arguments.prompts else PROMPTS
    num_pictures = len(endpoints) * len(people) * len(prompts) * arguments.seeds
    if num_pictures > arguments.max_pictures:
        raise PlanError(
            f"{len(people)} people, {len(prompts)} prompts, {arguments.seeds} seeds and {len(endpoints)} endpoints "
            f"make {num_pictures} pictures: take fewer, or allow them with --max-pictures {num_pictures}"
        )
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f"can't make the folder {arguments.output}: {error.strerror}") from None
    return Request(
        endpoints=endpoints,
        people=people,
        prompts=prompts,
        num_seeds=arguments.seeds,
        folder=arguments.output,
        concurrency=arguments.concurrency,
        command=shlex.join(["likeness", *sys.argv[1:]]),
    )


def _open_model() -> IdentityModel:
    from engine.face.detect import YuNetDetector
    from engine.face.identity import DlibIdentity

    return DlibIdentity(YuNetDetector())


def _fail(message: str, exit_code: ExitCode) -> int:
    print(f"likeness: {message}", file=sys.stderr)
    return exit_code
