"""The overhead benchmark: stretches of a request add up to its latency; processor time goes to who spent it."""

from __future__ import annotations

import time

import pytest

from benchmarks.otlp_collector import CollectedSpan
from benchmarks.process_cpu import cpu_seconds, spent_ms
from benchmarks.service import Answer, by_name, stretches_ms
from serve_app.stages import FLUX_REPLICA, INGRESS

TRACE = "0af7651916cd43dd8448eb211c80319c"
TIMES_MS = {
    "POST /flux-ipadapter-faceid": (5.0, 40.0),
    "face": (8.0, 8.5),
    "draw": (9.0, 38.0),
    FLUX_REPLICA: (11.0, 36.0),
    "queue": (11.0, 12.0),
    "denoise": (12.0, 30.0),
    "compress": (30.0, 35.0),
}


def spans() -> list[CollectedSpan]:
    return [
        CollectedSpan(trace_id=TRACE, stage="", name=name, start_ns=int(1e6 * start), end_ns=int(1e6 * end))
        for name, (start, end) in TIMES_MS.items()
    ]


def test_stretches_add_up_to_what_the_client_saw() -> None:
    answer = Answer(sent_ns=0, done_ns=44_000_000, stages_ms={})
    other = CollectedSpan(trace_id="0" * 32, stage="", name="draw", start_ns=0, end_ns=10**9)
    named = by_name([*spans(), other], TRACE)
    assert INGRESS in named
    stretches = stretches_ms(answer, named)
    assert sum(stretches.values()) == pytest.approx(answer.latency_ms) == 44.0
    assert stretches["engine"] == 19.0
    assert stretches["writing the JPEG"] == 5.0
    assert stretches["to the Flux replica and back"] == 4.0


def test_overhead_is_latency_without_the_engine() -> None:
    stages = {"face": 1.0, "queue": 2.0, "encode": 3.0, "denoise": 4.0, "decode": 5.0, "compress": 6.0, "total": 30.0}
    answer = Answer(sent_ns=0, done_ns=32_000_000, stages_ms=stages)
    assert answer.latency_ms - answer.engine_ms == 32.0 - 14.0


def test_processor_time_goes_to_who_spent_it() -> None:
    before = cpu_seconds()
    until_s = time.process_time() + 0.1
    while time.process_time() < until_s:
        pass
    spent = spent_ms(before, cpu_seconds(), num_requests=10)
    assert spent["client"] >= 8.0, "this process, to the kernel's tick of 10 ms"
