"""Load for a running service: open-loop arrivals, latency percentiles, goodput, and what went wrong.

    likeness serve &
    python -m benchmarks.load --arrivals bursts --rate 0.5 --seconds 60 --steps 4:1 --slo 10 --out output/load

Writes ``report.json``, ``report.png`` and ``report.html`` into the folder ``--out``. Requests come from a trace file
(:mod:`benchmarks.traces`) or from the same flags. It sends to the one URL it is given and is bounded in number and
time; Ctrl-C ends it early and reports what there is. An API key is taken from the environment, LIKENESS_API_KEY.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import load_report, traces
from benchmarks.load_sender import Sender, SendingLimits
from benchmarks.machine import machine
from benchmarks.reference_faces import reference_urls
from serve_app.client import api_key_from, check_url
from serve_app.client_answer import ClientError
from serve_app.files import InputFileError
from serve_app.progress import ProgressLine

REDRAW_S = 0.5


async def send(sender: Sender) -> None:
    """The whole run, with a line on standard error that tells how far it is."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    with ProgressLine(sys.stderr, "starting") as line:
        telling = loop.create_task(_tell(sender, line))
        try:
            await sender.run(stop)
        finally:
            telling.cancel()
            loop.remove_signal_handler(signal.SIGINT)


async def _tell(sender: Sender, line: ProgressLine) -> None:
    while True:
        await asyncio.sleep(REDRAW_S)
        line.update(sender.in_words(), is_count=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Send, then report."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        check_url(arguments.url)
        api_key = api_key_from(os.environ)
        trace = traces.read(arguments.trace) if arguments.trace else traces.from_flags(arguments)
        if not trace:
            raise ValueError("the trace holds no requests: raise --rate or --seconds")
        references = reference_urls(1 + max(arrival.person for arrival in trace), arguments.faces)
        arguments.out.mkdir(parents=True, exist_ok=True)
    except (ClientError, InputFileError, traces.TraceError, OSError, ValueError) as error:
        parser.error(str(error))
    trace = tuple(arrival for arrival in trace if arrival.at_s <= arguments.max_seconds)[: arguments.max_requests]
    limits = SendingLimits(
        request_timeout_s=arguments.timeout,
        max_connections=arguments.max_connections,
        drain_s=arguments.timeout,
        max_retries=arguments.retries,
    )
    sender = Sender(arguments.url, trace, references, limits, api_key=api_key)
    asyncio.run(send(sender))
    report = _report(sender, arguments, sys.argv[1:] if argv is None else argv)
    _write(arguments.out, report, sender, slo_s=arguments.slo)
    _print(report["summary"], arguments.out)
    return 130 if sender.is_interrupted else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service (default %(default)s)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="requests from a file instead of the flags below")
    traces.add_flags(parser)
    parser.add_argument("--faces", type=Path, metavar="FOLDER", help="reference photos (default: made from one photo)")
    parser.add_argument("--slo", type=float, default=10.0, metavar="SECONDS", help="objective (default %(default)g)")
    parser.add_argument(
        "--retries", type=int, default=0, help="after 429 and 503, at the time Retry-After says (default %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS", help="a request (default %(default)g)"
    )
    parser.add_argument("--max-connections", type=int, default=256, help="at once (default %(default)s)")
    parser.add_argument("--max-requests", type=int, default=10_000, help="of the trace (default %(default)s)")
    parser.add_argument("--max-seconds", type=float, default=1800.0, help="of the trace (default %(default)g)")
    parser.add_argument("--title", default="Load on Likeness", help="of the report (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="made if missing")
    return parser


def _report(sender: Sender, arguments: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    duration_s = max((outcome.done_s for outcome in sender.outcomes), default=0.0) or sender.now_s
    return {
        "title": arguments.title,
        "command": " ".join(["python -m benchmarks.load", *argv]),
        "machine": machine(),
        "is_interrupted": sender.is_interrupted,
        "summary": load_report.summarise(sender.outcomes, sender.answers, slo_s=arguments.slo, duration_s=duration_s),
    }


def _write(folder: Path, report: dict[str, Any], sender: Sender, *, slo_s: float) -> None:
    requests = load_report.as_json(sender.outcomes)
    (folder / "report.json").write_text(json.dumps({**report, "requests": requests}, indent=1) + "\n", encoding="utf-8")
    if sender.outcomes:
        png = load_report.plot(sender.outcomes, slo_s=slo_s, title=report["title"])
        (folder / "report.png").write_bytes(png)
        (folder / "report.html").write_text(load_report.render_page(report, png), encoding="utf-8")


def _print(summary: dict[str, Any], folder: Path) -> None:
    print(
        f"{summary['num_ok']} pictures of {summary['num_requests']} requests, {summary['num_within_slo']} within "
        f"{summary['slo_s']:g} s, in {summary['duration_s']:.1f} s: {summary['pictures_per_s']:.2f} a second, "
        f"goodput {summary['goodput_per_s']:.2f}"
    )
    if summary["latency_s"] is not None:
        latency = summary["latency_s"]
        print("latency: " + ", ".join(f"{name} {latency[name]:.2f} s" for name in ("p50", "p90", "p95", "p99", "max")))
    for result, count in summary["results"].items():
        print(f"{count:8d}  {result}")
    print(f"Report: {folder / 'report.html'}")


if __name__ == "__main__":
    raise SystemExit(main())
