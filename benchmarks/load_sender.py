"""Sends a trace over HTTP, every request at its own time whatever became of those before it, and notes what came back.

Open loop: a slow answer delays no later request, and latency counts from the moment the trace has for a request, not
from when it was sent. Otherwise a generator that waits for a stalled service leaves out the very requests that would
have waited longest (coordinated omission).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import datetime
import json
import random
import re
import time
from collections.abc import Sequence
from typing import Any, Final

import httpx

from benchmarks.traces import Arrival
from serve_app.client import ENDPOINT, MAX_ANSWER_BYTES, is_loopback
from serve_app.client_answer import RETRIED, printable
from serve_app.retry import RetryPolicy
from serve_app.sniff import media_type_of

PROMPTS: Final = (
    "A professional AI influencer portrait",
    "A portrait in a sunlit garden",
    "A person in a red jacket, city street at night",
    "Studio photo, soft light, grey background",
    "An astronaut before a starry sky",
    "A watercolour portrait",
    "Close-up, freckles, natural light",
    "A person reading in a library",
)
OK: Final = "ok"
UNFINISHED: Final = "Unfinished"
"""Still without an answer when the run was over."""
CLIENT_TIMEOUT: Final = "ClientTimeout"
"""Given up by this side."""

_SERVER_TIMING = re.compile(r"([a-z_]+);dur=([0-9.]+)")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SendingLimits:
    """What keeps a run bounded.

    Attributes:
        request_timeout_s: for one request with all its attempts, from the moment the trace has for it.
        max_connections: requests on their way at once; later ones wait here, and their waiting counts.
        drain_s: how long the last answers are awaited after the last request was sent.
        max_retries: further attempts after 429 and 503, at the time that ``Retry-After`` says; 0 takes the refusal.
    """

    request_timeout_s: float = 120.0
    max_connections: int = 256
    drain_s: float = 120.0
    max_retries: int = 0


@dataclasses.dataclass(kw_only=True, slots=True)
class Outcome:
    """What became of one request. Times are seconds from the start of the run.

    Attributes:
        index: its place in the trace.
        sent_s: when its first attempt began; later than the trace says where this machine was too slow.
        done_s: when its last answer was complete, or it was given up.
        result: ``ok``, the ``type`` of the service's error, or the name of what broke on the way.
        status: HTTP status of the last answer; None where there was none.
        num_attempts: requests sent.
        num_bytes: of the picture.
        stages_s: the service's own seconds, from ``Server-Timing``.
    """

    index: int
    arrival: Arrival
    sent_s: float
    done_s: float = 0.0
    result: str = UNFINISHED
    status: int | None = None
    num_attempts: int = 0
    num_bytes: int = 0
    cost_usd: float = 0.0
    stages_s: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def latency_s(self) -> float:
        """From the moment the trace has for it."""
        return self.done_s - self.arrival.at_s

    @property
    def is_ok(self) -> bool:
        """Whether a picture came."""
        return self.result == OK


class Sender:
    """One run of one trace against one URL.

    Attributes:
        outcomes: by request, in the order in which they ended.
        answers: HTTP answers by ``(status, type)``, refused attempts included: what the service itself has counted.
    """

    def __init__(
        self, url: str, trace: Sequence[Arrival], references: Sequence[str], limits: SendingLimits, api_key: str = ""
    ) -> None:
        self._url = url.rstrip("/") + ENDPOINT
        self._trace = trace
        self._references = [json.dumps(reference).encode() for reference in references]
        self._limits = limits
        self._headers = {"Content-Type": "application/json", "Accept": "image/jpeg"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._retry = RetryPolicy(
            max_retries=limits.max_retries, random=random.random, now=lambda: datetime.datetime.now(datetime.UTC)
        )
        self._started_s = 0.0
        self.outcomes: list[Outcome] = []
        self.answers: collections.Counter[tuple[int, str]] = collections.Counter()
        self.num_sent = 0
        self.is_interrupted = False

    @property
    def now_s(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._started_s

    def in_words(self) -> str:
        """How far the run is, for one line on a terminal."""
        num_ok = sum(outcome.is_ok for outcome in self.outcomes)
        refused = sum(outcome.status in RETRIED for outcome in self.outcomes)
        failed = len(self.outcomes) - num_ok - refused
        words = f"{self.num_sent}/{len(self._trace)} sent, {self.num_sent - len(self.outcomes)} open, {num_ok} ok"
        words += f", {refused} refused" * bool(refused) + f", {failed} failed" * bool(failed)
        recent = sorted(outcome.latency_s for outcome in self.outcomes[-50:] if outcome.is_ok)
        return words + (f", p50 of the last {len(recent)}: {recent[len(recent) // 2]:.2f} s" if recent else "")

    async def run(self, stop: asyncio.Event) -> None:
        """Send everything. ``stop`` ends the run early: what has no answer then counts as unfinished."""
        connections = httpx.Limits(max_connections=self._limits.max_connections, keepalive_expiry=30.0)
        trust_env = not is_loopback(self._url)
        async with httpx.AsyncClient(limits=connections, timeout=None, trust_env=trust_env) as http:
            self._started_s = time.perf_counter()
            tasks: set[asyncio.Task[None]] = set()
            for index, arrival in enumerate(self._trace):
                if await _waited(stop, arrival.at_s - self.now_s):
                    break
                tasks.add(asyncio.create_task(self._send(http, index, arrival)))
                self.num_sent += 1
            ending = asyncio.create_task(stop.wait())
            everyone = asyncio.gather(*tasks)
            waited_for: set[asyncio.Future[Any]] = {ending, everyone}
            await asyncio.wait(waited_for, timeout=self._limits.drain_s, return_when=asyncio.FIRST_COMPLETED)
            self.is_interrupted = stop.is_set()
            for task in tasks:
                task.cancel()
            ending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await everyone
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, http: httpx.AsyncClient, index: int, arrival: Arrival) -> None:
        outcome = Outcome(index=index, arrival=arrival, sent_s=self.now_s)
        deadline_s = arrival.at_s + self._limits.request_timeout_s
        try:
            async with asyncio.timeout(max(0.0, deadline_s - self.now_s)):
                await self._attempt(http, outcome, deadline_s)
        except asyncio.CancelledError:
            outcome.result, outcome.status = UNFINISHED, None
            raise
        except TimeoutError:
            outcome.result, outcome.status = CLIENT_TIMEOUT, None
        except httpx.HTTPError as error:
            outcome.result = type(error).__name__
        finally:
            outcome.done_s = self.now_s
            self.outcomes.append(outcome)

    async def _attempt(self, http: httpx.AsyncClient, outcome: Outcome, deadline_s: float) -> None:
        """Send once, and again where the service asks for that and the limits allow it."""
        outcome.num_attempts += 1
        answer = await http.post(self._url, content=self._body(outcome.arrival), headers=self._headers)
        outcome.status = answer.status_code
        outcome.result = _result(answer)
        self.answers[answer.status_code, outcome.result] += 1
        if outcome.is_ok:
            outcome.num_bytes = len(answer.content)
            outcome.cost_usd = float(answer.headers.get("X-Cost-USD", 0.0))
            outcome.stages_s = parse_server_timing(answer.headers.get("Server-Timing", ""))
        if answer.status_code in RETRIED:
            retry_after = answer.headers.get("Retry-After")
            time_left_s = deadline_s - self.now_s
            if (pause_s := self._retry.pause_s(outcome.num_attempts, retry_after, time_left_s=time_left_s)) is not None:
                await asyncio.sleep(pause_s)
                await self._attempt(http, outcome, deadline_s)

    def _body(self, arrival: Arrival) -> bytes:
        fields = {
            "prompt": PROMPTS[arrival.seed % len(PROMPTS)],
            "width": arrival.width_px,
            "height": arrival.height_px,
            "steps": arrival.num_steps,
            "cfg": arrival.cfg,
            "seed": arrival.seed,
        }
        # A reference has a hundred kilobytes: made JSON once, not for every request.
        reference = self._references[arrival.person % len(self._references)]
        return json.dumps(fields).encode()[:-1] + b', "reference_image": ' + reference + b"}"


def parse_server_timing(header: str) -> dict[str, float]:
    """Seconds by stage from ``face;dur=1.5, queue;dur=20.0`` (milliseconds; W3C Server Timing)."""
    return {name: float(ms) / 1000.0 for name, ms in _SERVER_TIMING.findall(header)}


def _result(answer: httpx.Response) -> str:
    if answer.status_code == httpx.codes.OK:
        is_picture = media_type_of(answer.content[:32]) == "image/jpeg" and len(answer.content) <= MAX_ANSWER_BYTES
        return OK if is_picture else "NotAPicture"
    try:
        return printable(str(answer.json()["type"]))[:80]
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"


async def _waited(stop: asyncio.Event, seconds: float) -> bool:
    """Wait; True as soon as the run is to end."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), max(0.0, seconds))
    return stop.is_set()
