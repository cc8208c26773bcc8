"""The Python side of the command-line client: one request to the service, a checked picture back.

Knows the contract, no Ray and no torch. Clock, sleep and randomness are handed in.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import ipaddress
import json
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import httpx

from serve_app.exit_codes import ExitCode
from serve_app.retry import RetryPolicy
from serve_app.sniff import HEAD_BYTES, media_type_of

USER_AGENT: Final = "likeness-client"
ENDPOINT: Final = "/flux-ipadapter-faceid"
MAX_ANSWER_BYTES: Final = 64 * 2**20
"""A 2048×2048 PNG has at most 12.6 MB of pixels; what is larger is not an answer of this service."""

CONNECT_TIMEOUT_S: Final = 10.0
"""A machine that is there answers in milliseconds, across an ocean in 0.3 s."""

RETRIED: Final = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
_TIMEOUT_STATUSES: Final = (httpx.codes.REQUEST_TIMEOUT, httpx.codes.GATEWAY_TIMEOUT)
_MAX_SHOWN_CHARS: Final = 500

ImageFormat = Literal["jpeg", "png", "webp"]


class ClientError(Exception):
    """A request that brought no picture.

    Attributes:
        exit_code: how the command ends.
        error_type: the server's ``type``, or this side's word for what happened.
    """

    def __init__(self, message: str, *, exit_code: ExitCode, error_type: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.error_type = error_type


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DrawnPicture:
    """A complete picture and what the service says about it. None where it did not say.

    Attributes:
        data: the encoded picture, decoded once to be sure that it is whole.
        width_px, height_px: its size.
        drawn_size: ``256x256``: what the network drew, before scaling up.
        num_attempts: requests sent, the last one included.
    """

    data: bytes
    media_type: str
    width_px: int
    height_px: int
    cost_usd: float | None
    execution_time_s: float | None
    gpu_type: str | None
    seed: int | None
    drawn_size: str | None
    model: str | None
    request_id: str | None
    warnings: tuple[str, ...]
    num_attempts: int


@dataclasses.dataclass(kw_only=True, slots=True)
class Client:
    """Sends requests to one service.

    Attributes:
        url: the service's base URL.
        timeout_s: for everything: waiting, retries and the download.
        max_retries: further attempts after an answer of 429 or 503.
        on_progress: hears in a few words what is going on.
    """

    url: str
    timeout_s: float = 300.0
    max_retries: int = 5
    on_progress: Callable[[str], None] = lambda text: None
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
                headers={"Accept": media_type, "User-Agent": USER_AGENT},
                timeout=timeout,
            ) as answer:
                content = bytearray()
                for chunk in answer.iter_bytes():
                    content += chunk
                    if len(content) > MAX_ANSWER_BYTES:
                        raise _bad_answer(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
                    if self.clock() > deadline_s:
                        raise self._too_late()
                return httpx.Response(
                    answer.status_code, headers=_without_coding(answer.headers), content=bytes(content)
                )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            message = f"nothing answers at {self.url}: is the service running there? ({error})"
            raise ClientError(message, exit_code=ExitCode.UNREACHABLE, error_type="Unreachable") from error
        except httpx.TimeoutException as error:
            raise self._too_late() from error
        except httpx.HTTPError as error:
            message = f"the connection to {self.url} broke before the answer was complete ({error})"
            raise ClientError(message, exit_code=ExitCode.UNREACHABLE, error_type="ConnectionBroken") from error

    def _too_late(self) -> ClientError:
        return ClientError(
            f"no complete answer after {self.timeout_s:g} s: allow more with --timeout, or ask for fewer steps",
            exit_code=ExitCode.UNREACHABLE,
            error_type="Timeout",
        )


def refusal(answer: httpx.Response, *, num_attempts: int) -> ClientError:
    """What an answer other than 200 means, with the server's own sentence where it sent the contract's error body."""
    status = answer.status_code
    if status in RETRIED:
        exit_code = ExitCode.BUSY
    elif status in _TIMEOUT_STATUSES:
        exit_code = ExitCode.UNREACHABLE
    elif status >= 500:
        exit_code = ExitCode.SERVER_ERROR
    else:
        exit_code = ExitCode.BAD_INPUT
    try:
        body = json.loads(answer.content)
        message, error_type = str(body["error"]), str(body["type"])
    except (ValueError, KeyError, TypeError):
        message, error_type = f"{answer.reason_phrase}. Is this the service's URL?", "UnexpectedAnswer"
    attempts = f", {num_attempts} attempts" if num_attempts > 1 else ""
    shown = printable(message)[:_MAX_SHOWN_CHARS]
    return ClientError(f"{shown} (HTTP {status}{attempts})", exit_code=exit_code, error_type=error_type)


def checked_picture(answer: httpx.Response, media_type: str, *, num_attempts: int) -> DrawnPicture:
    """The picture in a 200 answer, once it is sure to be one.

    Raises:
        ClientError: another type than asked for, or bytes that are not a whole picture of that type.
    """
    from PIL import Image

    declared = answer.headers.get("Content-Type", "nothing").partition(";")[0].strip().lower()
    found = media_type_of(answer.content[:HEAD_BYTES])
    if declared != media_type or found != media_type:
        raise _bad_answer(f"asked for {media_type}, got {printable(declared)} that holds {found or 'no picture'}")
    try:
        with Image.open(io.BytesIO(answer.content)) as picture:
            picture.load()
            width_px, height_px = picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _bad_answer("the picture is cut off or damaged") from error
    headers = answer.headers
    return DrawnPicture(
        data=answer.content,
        media_type=media_type,
        width_px=width_px,
        height_px=height_px,
        cost_usd=_number(headers.get("X-Cost-USD")),
        execution_time_s=_number(headers.get("X-Execution-Time-Sec")),
        gpu_type=_text(headers.get("X-GPU-Type")),
        seed=_whole(headers.get("X-Seed")),
        drawn_size=_text(headers.get("X-Drawn-Size")),
        model=_text(headers.get("X-Model")),
        request_id=_text(headers.get("X-Request-ID")),
        warnings=tuple(printable(value) for value in headers.get_list("X-Warning")),
        num_attempts=num_attempts,
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


def printable(text: str) -> str:
    """Text of a server for a terminal: no control characters, which could do more than show."""
    return "".join(character if character.isprintable() else " " for character in text)


def _bad_answer(what: str) -> ClientError:
    return ClientError(
        f"the server's answer is not the picture: {what}", exit_code=ExitCode.SERVER_ERROR, error_type="BadAnswer"
    )


def _without_coding(headers: httpx.Headers) -> httpx.Headers:
    """The headers of a body that httpx already decompressed and joined."""
    left_out = ("content-encoding", "content-length", "transfer-encoding")
    return httpx.Headers([(name, value) for name, value in headers.multi_items() if name.lower() not in left_out])


def _text(value: str | None) -> str | None:
    return None if value is None else printable(value)


def _number(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


def _whole(value: str | None) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        return None
