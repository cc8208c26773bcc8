"""The Python side of the command-line client: one request to the service, a checked picture back.

Knows the contract, no Ray and no torch. Clock, sleep and randomness are handed in.
"""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import httpx

from serve_app.client_answer import (
    RETRIED,
    ClientError,
    DrawnPicture,
    bad_answer,
    checked_picture,
    content_type,
    refusal,
)
from serve_app.client_events import EVENT_STREAM, BrokenEventsError, ServerEvent, events_in, plain_answer
from serve_app.exit_codes import ExitCode
from serve_app.retry import RetryPolicy

USER_AGENT: Final = "likeness-client"
ENDPOINT: Final = "/flux-ipadapter-faceid"
MAX_ANSWER_BYTES: Final = 64 * 2**20
"""A 2048×2048 PNG has at most 12.6 MB of pixels; what is larger is not an answer of this service."""

CONNECT_TIMEOUT_S: Final = 10.0
"""A machine that is there answers in milliseconds, across an ocean in 0.3 s."""

ImageFormat = Literal["jpeg", "png", "webp"]

API_KEY_VARIABLE: Final = "LIKENESS_API_KEY"
"""Where the commands take a key from. Not from a flag: everybody on a machine can read the flags of its programs."""


class BadKeyError(ValueError):
    """What the environment holds can't be a key."""


def api_key_from(environment: Mapping[str, str]) -> str:
    """The key of :data:`API_KEY_VARIABLE`; empty where there is none.

    Raises:
        BadKeyError: it holds characters that no header can.
    """
    key = environment.get(API_KEY_VARIABLE, "").strip()
    if not all("!" <= character <= "~" for character in key):
        raise BadKeyError(f"{API_KEY_VARIABLE} holds more than a key: spaces, line breaks or letters beyond ASCII")
    return key


@dataclasses.dataclass(kw_only=True, slots=True)
class Client:
    """Sends requests to one service.

    Attributes:
        url: the service's base URL.
        timeout_s: for everything: waiting, retries and the download.
        max_retries: further attempts after an answer of 429 or 503.
        on_progress: hears in a few words what is going on.
        on_event: hears how the drawing goes, from services that tell; None does not ask them to.
        api_key: for services that ask for one; sent to ``url`` and nowhere else, for no redirect is followed.
    """

    url: str
    timeout_s: float = 300.0
    max_retries: int = 5
    on_progress: Callable[[str], None] = lambda text: None
    on_event: Callable[[ServerEvent], None] | None = None
    api_key: str = dataclasses.field(default="", repr=False)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random
    now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC)

    def draw(self, body: Mapping[str, Any], image_format: ImageFormat = "jpeg") -> DrawnPicture:
        """Send one request and return the picture.

        Args:
            body: the contract's JSON object.
            image_format: what to ask for with ``Accept``.

        Raises:
            ClientError: no picture came; see its exit code.
        """
        check_url(self.url)
        media_type = f"image/{image_format}"
        policy = RetryPolicy(max_retries=self.max_retries, random=self.random, now=self.now)
        deadline_s = self.clock() + self.timeout_s
        num_attempts = 0
        with httpx.Client(trust_env=not is_loopback(self.url), follow_redirects=False) as http:
            while True:
                num_attempts += 1
                self.on_progress("drawing" if num_attempts == 1 else f"drawing (attempt {num_attempts})")
                answer = self._send(http, body, media_type, deadline_s)
                if answer.status_code not in RETRIED:
                    break
                pause_s = policy.pause_s(
                    num_attempts, answer.headers.get("Retry-After"), time_left_s=deadline_s - self.clock()
                )
                if pause_s is None:
                    raise refusal(answer, num_attempts=num_attempts)
                self.on_progress(f"the server is busy (HTTP {answer.status_code}); again in {pause_s:.0f} s")
                self.sleep(pause_s)
        if answer.status_code != httpx.codes.OK:
            raise refusal(answer, num_attempts=num_attempts)
        return checked_picture(answer, media_type, num_attempts=num_attempts)

    def _send(self, http: httpx.Client, body: Mapping[str, Any], media_type: str, deadline_s: float) -> httpx.Response:
        """One attempt, its answer read to the end."""
        # A cut-off between two bytes is httpx's to watch, the time of everything together is ours.
        left_s = max(0.001, deadline_s - self.clock())
        timeout = httpx.Timeout(left_s, connect=min(left_s, CONNECT_TIMEOUT_S))
        try:
            with http.stream(
                "POST",
                self.url.rstrip("/") + ENDPOINT,
                json=body,
                headers=self._headers(media_type),
                timeout=timeout,
            ) as answer:
                chunks = self._chunks(answer, deadline_s)
                if self.on_event is not None and content_type(answer) == EVENT_STREAM:
                    return self._followed(chunks, self.on_event)
                return httpx.Response(
                    answer.status_code, headers=_without_coding(answer.headers), content=b"".join(chunks)
                )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            message = f"nothing answers at {self.url}: is the service running there? ({error})"
            raise ClientError(message, exit_code=ExitCode.UNREACHABLE, error_type="Unreachable") from error
        except httpx.TimeoutException as error:
            raise self._too_late() from error
        except httpx.HTTPError as error:
            message = f"the connection to {self.url} broke before the answer was complete ({error})"
            raise ClientError(message, exit_code=ExitCode.UNREACHABLE, error_type="ConnectionBroken") from error

    def _headers(self, media_type: str) -> dict[str, str]:
        # Services without event streams read the second wish only.
        accept = media_type if self.on_event is None else f"{EVENT_STREAM}, {media_type};q=0.9"
        key = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {"Accept": accept, "User-Agent": USER_AGENT, **key}

    def _chunks(self, answer: httpx.Response, deadline_s: float) -> Iterator[bytes]:
        """An answer as it arrives, within its limits."""
        num_bytes = 0
        for chunk in answer.iter_bytes():
            num_bytes += len(chunk)
            if num_bytes > MAX_ANSWER_BYTES:
                raise bad_answer(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
            if self.clock() > deadline_s:
                raise self._too_late()
            yield chunk

    def _followed(self, chunks: Iterator[bytes], on_event: Callable[[ServerEvent], None]) -> httpx.Response:
        """A stream's events told on, and the answer that its last one stands for."""
        try:
            for event in events_in(chunks):
                if (answer := plain_answer(event)) is not None:
                    return answer
                on_event(event)
        except BrokenEventsError as error:
            raise bad_answer(str(error)) from error
        message = f"the connection to {self.url} ended before the picture came"
        raise ClientError(message, exit_code=ExitCode.UNREACHABLE, error_type="ConnectionBroken")

    def _too_late(self) -> ClientError:
        return ClientError(
            f"no complete answer after {self.timeout_s:g} s: allow more with --timeout, or ask for fewer steps",
            exit_code=ExitCode.UNREACHABLE,
            error_type="Timeout",
        )


def check_url(url: str) -> None:
    """Raise ClientError where a URL is not one of HTTP with a host."""
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        is_usable = False
    if not is_usable:
        message = f"{url!r} is not a URL such as http://127.0.0.1:8000"
        raise ClientError(message, exit_code=ExitCode.BAD_INPUT, error_type="InvalidUrl")


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine: such a request must not go through a proxy of the environment."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _without_coding(headers: httpx.Headers) -> httpx.Headers:
    """The headers of a body that httpx already decompressed and joined."""
    left_out = ("content-encoding", "content-length", "transfer-encoding")
    return httpx.Headers([(name, value) for name, value in headers.multi_items() if name.lower() not in left_out])
