"""The load generator against a real socket: every request counted once, at the time its trace has for it."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load, load_report, traces
from benchmarks.load_sender import CLIENT_TIMEOUT, OK, UNFINISHED, Sender, SendingLimits
from benchmarks.reference_faces import reference_urls
from benchmarks.traces import Arrival
from serve_app import data_url
from tests.answering_server import Canned, answering, drawn, refused

TIMING = {"Server-Timing": "face;dur=1.5, queue;dur=20.0, total;dur=40.0"}


def arrival(at_s: float = 0.0, **changes: Any) -> Arrival:
    fields: dict[str, Any] = {"width_px": 512, "height_px": 512, "num_steps": 4, "cfg": 1.0, "person": 0, "seed": 1}
    return Arrival(at_s=at_s, **(fields | changes))


def sent(
    answers: Sequence[Canned], trace: Sequence[Arrival], limits: SendingLimits | None = None, *, stop_after: int = 0
) -> tuple[Sender, list[dict[str, Any]]]:
    """A finished run against a server with these answers, and the bodies that it got."""

    async def run(url: str) -> Sender:
        sender = Sender(url, trace, ["data:image/jpeg;base64,AAAA"], limits or SendingLimits())
        stop = asyncio.Event()
        running = asyncio.create_task(sender.run(stop))
        if stop_after:
            while len(sender.outcomes) < stop_after:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            stop.set()
        await running
        return sender

    with answering(answers) as server:
        return asyncio.run(run(server.url)), server.bodies


def slow(seconds: float) -> Canned:
    answer = drawn()
    return Canned(headers=answer.headers, body=answer.body, before=lambda: time.sleep(seconds))


def test_a_request_says_what_its_trace_says() -> None:
    sender, bodies = sent([drawn(**TIMING)], [arrival(width_px=768, num_steps=9, cfg=3.5, seed=7)])
    (outcome,) = sender.outcomes
    assert outcome.is_ok and outcome.stages_s == {"face": 0.0015, "queue": 0.02, "total": 0.04}
    assert outcome.cost_usd == 0.001234
    assert {"width": 768, "height": 512, "steps": 9, "cfg": 3.5, "seed": 7}.items() <= bodies[0].items()
    assert bodies[0]["reference_image"] == "data:image/jpeg;base64,AAAA"


def test_waiting_for_a_connection_counts_as_latency() -> None:
    """All are asked for at once, but answered one after the other: the k-th has waited for those before it."""
    sender, _ = sent([slow(0.1)] * 4, [arrival()] * 4, SendingLimits(max_connections=1))
    latencies = sorted(outcome.latency_s for outcome in sender.outcomes)
    assert all(latency >= 0.1 * place for place, latency in enumerate(latencies, start=1))


def test_a_slow_answer_delays_no_later_request() -> None:
    other_ended = threading.Event()
    first = Canned(headers=drawn().headers, body=drawn().body, before=lambda: other_ended.wait(60.0))

    async def run(url: str) -> Sender:
        sender = Sender(url, [arrival(seed=1), arrival(0.05, seed=2)], ["x"], SendingLimits())
        running = asyncio.create_task(sender.run(asyncio.Event()))
        while not sender.outcomes:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        other_ended.set()
        await running
        return sender

    with answering([first, drawn()]) as server:
        sender = asyncio.run(run(server.url))
    came = [body["seed"] for body in server.bodies]
    assert [outcome.arrival.seed for outcome in sender.outcomes] == came[::-1]
    assert all(outcome.is_ok for outcome in sender.outcomes)


def test_every_answer_is_counted_and_every_request_ends_once() -> None:
    answers = [drawn(), refused(429), refused(400, kind="InvalidRequestError"), Canned(status=502), drawn("PNG")]
    sender, _ = sent(answers, [arrival(0.01 * n) for n in range(5)], SendingLimits(max_connections=1))  # in their order
    results = [outcome.result for outcome in sorted(sender.outcomes, key=lambda o: o.index)]
    assert results == [OK, "EngineBusyError", "InvalidRequestError", "HTTP 502", "NotAPicture"]
    assert sum(sender.answers.values()) == 5


def test_retry_after_is_honoured_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.0)
    busy = refused(429, **{"Retry-After": "0"})
    sender, _ = sent([busy, busy, drawn()], [arrival()], SendingLimits(max_retries=2))
    (outcome,) = sender.outcomes
    assert (outcome.is_ok, outcome.num_attempts) == (True, 3)
    assert sender.answers == {(429, "EngineBusyError"): 2, (200, OK): 1}


def test_a_run_is_bounded_and_can_be_stopped() -> None:
    sender, _ = sent([slow(1.0)], [arrival()], SendingLimits(request_timeout_s=0.1))
    assert [outcome.result for outcome in sender.outcomes] == [CLIENT_TIMEOUT]
    sender, _ = sent([slow(1.0)], [arrival()], SendingLimits(drain_s=0.1))
    assert [outcome.result for outcome in sender.outcomes] == [UNFINISHED]
    sender, _ = sent([drawn(), slow(1.0)], [arrival(), arrival(0.3), arrival(1000.0)], stop_after=1)
    assert sender.is_interrupted and {outcome.result for outcome in sender.outcomes} <= {OK, UNFINISHED}


def test_no_server_is_a_result_like_any_other() -> None:
    with answering([]) as server:
        url = server.url
    sender = Sender(url, [arrival()], ["x"], SendingLimits())
    asyncio.run(sender.run(asyncio.Event()))
    assert [outcome.result for outcome in sender.outcomes] == ["ConnectError"]


def test_the_report_holds_what_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = [arrival(0.02 * n, width_px=512 if n % 2 else 1024) for n in range(6)]
    traces.write(tmp_path / "trace", trace)
    with answering([*[drawn(**TIMING)] * 5, refused(429)]) as server:
        arguments = ["--url", server.url, "--trace", str(tmp_path / "trace"), "--out", str(tmp_path / "out")]
        assert load.main([*arguments, "--title", "<b>run"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    summary = report["summary"]
    assert (summary["num_requests"], summary["num_ok"], summary["num_within_slo"]) == (6, 5, 5)
    assert summary["results"] == {"ok": 5, "EngineBusyError": 1}
    assert summary["stages_s"]["queue"]["p95"] == 0.02
    assert [row["num_requests"] for row in summary["by_kind"]] == [3, 3]
    assert len(report["requests"]) == 6
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;b&gt;run" in page and "<b>run" not in page and "EngineBusyError" in page
    assert not re.search(r"(src|href|@import|url\()\s*=?\s*[\"']?(https?:)?//", page), "it works without any server"
    assert "5 pictures of 6 requests" in capsys.readouterr().out


def test_stages_add_up_to_the_latency() -> None:
    sender, _ = sent([drawn(**TIMING)] * 3, [arrival(0.05 * n) for n in range(3)])
    means = load_report.stage_means(sender.outcomes)
    assert sum(means.values()) == pytest.approx(sum(outcome.latency_s for outcome in sender.outcomes) / 3)


def test_references_are_different_pictures_and_always_the_same() -> None:
    urls = reference_urls(4)
    assert len(set(urls)) == 4
    assert urls == reference_urls(4)
    assert all(data_url.parse(url).media_type == "image/jpeg" for url in urls)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "ftp://x"], "is not a URL"),
        (["--trace", "/nowhere"], "No such file"),
        (["--faces", "."], "holds no .jpg"),
        (["--rate", "0"], "must be above 0"),
        (["--rate", "0.001", "--seconds", "1"], "raise --rate or --seconds"),
    ],
)
def test_what_can_not_be_run_is_said(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load.main([*arguments, "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
