"""What ingress, stages and Ray add to the engine's time, and where each millisecond of it goes.

    python -m serve_app.local.contain --private-network -- \\
        python -m benchmarks.service --config benchmarks/configs/overhead_fake.yaml --out results.json

Starts the application of a Serve config on a Ray of its own and asks it over HTTP, at one request at a time and with
as many as ``--saturation`` says. The overhead of a request is its latency, seen by the client, less the seconds that
the engine says it took (waiting, text, steps, decoding); writing the JPEG counts as overhead. Then it starts the
application once more with tracing on, to see where the time of one request goes. Ends what it started.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import http.client
import json
import secrets
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.load_sender import parse_server_timing
from benchmarks.machine import machine
from benchmarks.otlp_collector import CollectedSpan, collecting
from benchmarks.process_cpu import cpu_seconds, spent_ms
from benchmarks.reference_faces import PHOTO
from serve_app.local.relay import Address
from serve_app.local.server import LocalServer, local_server
from serve_app.stages import FLUX_REPLICA, INGRESS

PATH = "/flux-ipadapter-faceid"
ENGINE_STAGES = ("queue", "encode", "denoise", "decode")
NUM_TRACED = 60
TRACES_TIMEOUT_S = 20.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One kind of request."""

    side_px: int
    num_steps: int

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.side_px}², {self.num_steps} steps"

    def body(self, seed: int) -> bytes:
        """The request, with the same reference always."""
        reference = "data:image/jpeg;base64," + base64.b64encode(PHOTO.read_bytes()).decode()
        fields = {"prompt": "A portrait", "width": self.side_px, "height": self.side_px, "steps": self.num_steps}
        return json.dumps({**fields, "seed": seed, "reference_image": reference}).encode()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One request as the client saw it; times are nanoseconds since 1970, stages the service's own milliseconds."""

    sent_ns: int
    done_ns: int
    stages_ms: Mapping[str, float]

    @property
    def latency_ms(self) -> float:
        """All of it."""
        return (self.done_ns - self.sent_ns) / 1e6

    @property
    def engine_ms(self) -> float:
        """What the engine says it took."""
        return sum(self.stages_ms[name] for name in ENGINE_STAGES)


class Caller:
    """One connection that stays open. The standard library's client: it adds 0.2 ms, httpx 1 ms."""

    def __init__(self, address: Address) -> None:
        self._connection = http.client.HTTPConnection(address.host, address.port, timeout=300.0)

    def ask(self, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        """Send one request, read its answer to the end."""
        sent_ns = time.time_ns()
        self._connection.request("POST", PATH, body, {"Content-Type": "application/json", **(headers or {})})
        response = self._connection.getresponse()
        data = response.read()
        done_ns = time.time_ns()
        if response.status != http.client.OK:
            raise RuntimeError(f"HTTP {response.status}: {data[:300]!r}")
        stages = parse_server_timing(response.headers["Server-Timing"])
        return Answer(sent_ns=sent_ns, done_ns=done_ns, stages_ms={name: 1e3 * s for name, s in stages.items()})


def closed_loop(address: Address, case: Case, *, num_callers: int, num_requests: int) -> tuple[list[Answer], float]:
    """``num_callers`` that each send their next request when the last was answered; answers, and seconds in all."""
    bodies = iter([case.body(seed) for seed in range(num_requests)])
    lock, answers = threading.Lock(), []

    def work() -> None:
        caller = Caller(address)
        while True:
            with lock:
                body = next(bodies, None)
            if body is None:
                return
            answers.append(caller.ask(body))

    threads = [threading.Thread(target=work) for _ in range(num_callers)]
    started_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers, time.perf_counter() - started_s


def measure(address: Address, case: Case, *, num_callers: int, num_requests: int, num_rounds: int) -> dict[str, Any]:
    """Several rounds: medians over rounds, and their range."""
    rounds = []
    before = cpu_seconds()
    for _ in range(num_rounds):
        answers, seconds = closed_loop(address, case, num_callers=num_callers, num_requests=num_requests)
        latency = [answer.latency_ms for answer in answers]
        overhead = [answer.latency_ms - answer.engine_ms for answer in answers]
        rounds.append(
            {
                "latency_p50_ms": float(np.percentile(latency, 50)),
                "latency_p95_ms": float(np.percentile(latency, 95)),
                "overhead_p50_ms": float(np.percentile(overhead, 50)),
                "overhead_p95_ms": float(np.percentile(overhead, 95)),
                "engine_p50_ms": statistics.median(answer.engine_ms for answer in answers),
                "pictures_per_s": len(answers) / seconds,
            }
        )
    return {
        "case": case.name,
        "callers": num_callers,
        "requests": num_requests,
        "rounds": num_rounds,
        "cpu_ms_by_process": spent_ms(before, cpu_seconds(), num_requests * num_rounds),
        **{
            name: {
                "median": round(statistics.median(one[name] for one in rounds), 2),
                "min": round(min(one[name] for one in rounds), 2),
                "max": round(max(one[name] for one in rounds), 2),
            }
            for name in rounds[0]
        },
    }


def breakdown(address: Address, collector_spans: list[CollectedSpan], case: Case) -> dict[str, float]:
    """Median milliseconds of each stretch of a request's road, at one request at a time. They add up to the whole."""
    caller = Caller(address)
    asked: dict[str, Answer] = {}
    for seed in range(NUM_TRACED):
        trace_id = secrets.token_hex(16)
        asked[trace_id] = caller.ask(case.body(seed), {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"})
    deadline_s = time.monotonic() + TRACES_TIMEOUT_S
    while time.monotonic() < deadline_s:
        traces = {trace_id: by_name(collector_spans, trace_id) for trace_id in asked}
        if all({INGRESS, "face", FLUX_REPLICA, "compress"} <= spans.keys() for spans in traces.values()):
            stretches = [stretches_ms(asked[trace_id], spans) for trace_id, spans in traces.items()]
            return {name: round(statistics.median(one[name] for one in stretches), 2) for name in stretches[0]}
        time.sleep(0.5)
    raise RuntimeError(f"not all of {NUM_TRACED} traces arrived within {TRACES_TIMEOUT_S:g} s")


def by_name(spans: Sequence[CollectedSpan], trace_id: str) -> dict[str, CollectedSpan]:
    """A request's spans; the ingress's own under its deployment's name."""
    return {INGRESS if span.name.startswith("POST") else span.name: span for span in spans if span.trace_id == trace_id}


def stretches_ms(answer: Answer, spans: Mapping[str, CollectedSpan]) -> dict[str, float]:
    """One request's road, cut where spans begin and end."""
    root, face, draw = spans[INGRESS], spans["face"], spans["draw"]
    in_replica = {name: spans[name].ms if name in spans else 0.0 for name in (*ENGINE_STAGES, "compress")}
    return {
        "to the ingress: client, HTTP, Serve's proxy": (root.start_ns - answer.sent_ns) / 1e6,
        "read, JSON, base64, checks": (face.start_ns - root.start_ns) / 1e6,
        "face, seen before": face.ms,
        "between the stages": (draw.start_ns - face.end_ns) / 1e6,
        "to the Flux replica and back": draw.ms - spans[FLUX_REPLICA].ms,
        "engine": sum(in_replica[name] for name in ENGINE_STAGES),
        "writing the JPEG": in_replica["compress"],
        "replica, besides": spans[FLUX_REPLICA].ms - sum(in_replica.values()),
        "headers, metrics, log": (root.end_ns - draw.end_ns) / 1e6,
        "from the ingress: Serve's proxy, HTTP, client": (answer.done_ns - root.end_ns) / 1e6,
    }


@contextmanager
def application(config: Path, address: Address, log_file: Path, **args: Any) -> Iterator[LocalServer]:
    """The application of a config with some of its ``args:`` changed, ready."""
    document = yaml.safe_load(config.read_text(encoding="utf-8"))
    document["applications"][0]["args"] |= args
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder) / config.name
        changed.write_text(yaml.safe_dump(document), encoding="utf-8")
        with local_server(changed, address, log_file) as server:
            try:
                server.wait_until_ready(lambda words: print(words, file=sys.stderr, flush=True), timeout_s=300.0)
            except Exception:
                print(server.log_tail(), file=sys.stderr)
                raise
            yield server


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    arguments = _parser().parse_args(argv)
    cases = [Case(side_px=side, num_steps=arguments.steps) for side in arguments.sides]
    results: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.service", *(sys.argv[1:] if argv is None else argv)]),
        "machine": machine(),
        "measured": [],
        "where_ms": {},
    }
    address = Address(host="127.0.0.1", port=arguments.port)
    with application(arguments.config, address, arguments.log_file):
        for case in cases:
            closed_loop(address, case, num_callers=2, num_requests=arguments.warm_up)
            for num_callers in (1, arguments.saturation):
                results["measured"].append(
                    measure(
                        address,
                        case,
                        num_callers=num_callers,
                        num_requests=arguments.requests * (1 if num_callers == 1 else 2),
                        num_rounds=arguments.rounds,
                    )
                )
                _print_row(results["measured"][-1])
    if not arguments.no_traces:
        traced_address = Address(host="127.0.0.1", port=arguments.port + 1)
        with (
            collecting() as collector,
            application(arguments.config, traced_address, arguments.log_file, tracing={"otlp_endpoint": collector.url}),
        ):
            for case in cases:
                closed_loop(traced_address, case, num_callers=2, num_requests=arguments.warm_up)
                results["where_ms"][case.name] = breakdown(traced_address, collector.spans, case)
                _print_breakdown(case, results["where_ms"][case.name])
    arguments.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def _print_row(row: Mapping[str, Any]) -> None:
    def shown(name: str) -> str:
        value = row[name]
        return f"{value['median']:8.1f} ({value['min']:.1f} – {value['max']:.1f})"

    print(f"{row['case']}, {row['callers']} at once: {row['pictures_per_s']['median']:.1f} pictures a second")
    for name in ("latency_p50_ms", "latency_p95_ms", "overhead_p50_ms", "overhead_p95_ms", "engine_p50_ms"):
        print(f"    {name:18s}{shown(name)}")
    print("    processor ms a request: " + ", ".join(f"{name} {ms}" for name, ms in row["cpu_ms_by_process"].items()))


def _print_breakdown(case: Case, stretches: Mapping[str, float]) -> None:
    print(f"{case.name}, where the time of one request goes, median ms (with tracing on)")
    for name, ms in stretches.items():
        print(f"    {name:48s}{ms:8.2f}")
    print(f"    {'together':48s}{sum(stretches.values()):8.2f}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024], help="of the pictures (default 512 1024)")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--requests", type=int, default=60, help="of a round, twice as many at saturation")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=20, help="requests before")
    parser.add_argument("--saturation", type=int, default=16, help="requests at once")
    parser.add_argument("--no-traces", action="store_true", help="leave out where the time goes")
    parser.add_argument("--port", type=int, default=8151)
    parser.add_argument("--log-file", type=Path, default=Path("output/benchmark_service.log"))
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
