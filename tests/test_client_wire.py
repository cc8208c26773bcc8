"""The client against a real socket: what it sends, what it takes for a picture, what it makes of all else."""

from __future__ import annotations

import datetime
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from serve_app.client import Client, ImageFormat, is_loopback
from serve_app.client_answer import ClientError
from serve_app.exit_codes import ExitCode
from tests.answering_server import Canned, answering, drawn, picture_bytes, refused

BODY = {"prompt": "p", "reference_image": "data:image/png;base64,AAAA"}


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


def client(url: str, time: FakeTime | None = None, **overrides: Any) -> Client:
    time = time or FakeTime()
    fields: dict[str, Any] = {"timeout_s": 60.0, "random": lambda: 0.0} | overrides
    return Client(url=url, clock=lambda: time.now_s, sleep=time.sleep, **fields)


def error_of(answers: list[Canned], **overrides: Any) -> ClientError:
    with answering(answers) as server, pytest.raises(ClientError) as caught:
        client(server.url, **overrides).draw(BODY)
    return caught.value


def test_the_picture_and_what_the_headers_say() -> None:
    answer = drawn(**{"X-Seed": "7", "X-Drawn-Size": "16x8"})
    with answering([answer]) as server:
        picture = client(server.url + "/").draw(BODY)
    assert picture.data == answer.body
    assert (picture.width_px, picture.height_px, picture.media_type) == (32, 16, "image/jpeg")
    assert (picture.cost_usd, picture.execution_time_s, picture.gpu_type) == (0.001234, 2.5, "CPU")
    assert (picture.seed, picture.drawn_size, picture.num_attempts) == (7, "16x8", 1)
    assert server.paths == ["/flux-ipadapter-faceid"]
    assert server.bodies == [BODY]
    assert server.headers[0]["Accept"] == "image/jpeg"
    assert server.headers[0]["Content-Type"] == "application/json"


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_every_format_is_asked_for_and_checked(image_format: ImageFormat) -> None:
    with answering([drawn(image_format.upper())]) as server:
        picture = client(server.url).draw(BODY, image_format)
    assert picture.media_type == server.headers[0]["Accept"] == f"image/{image_format}"


def test_a_service_that_says_nothing_about_cost_is_no_error() -> None:
    with answering([Canned(headers={"Content-Type": "image/jpeg", "X-Seed": "x"}, body=picture_bytes())]) as server:
        picture = client(server.url).draw(BODY)
    assert (picture.cost_usd, picture.execution_time_s, picture.gpu_type, picture.seed) == (None,) * 4


@pytest.mark.parametrize("status", [429, 503])
def test_busy_then_drawn(status: int) -> None:
    time = FakeTime()
    with answering([refused(status, **{"Retry-After": "3"}), refused(status), drawn()]) as server:
        picture = client(server.url, time).draw(BODY)
    assert picture.num_attempts == 3
    assert time.slept == [3.0, 1.0], "the server's figure, then half of the second backoff of 2 s"
    assert server.bodies == [BODY] * 3


def test_retry_after_as_a_date() -> None:
    time = FakeTime()
    now = datetime.datetime(2027, 1, 1, 12, 0, 0, tzinfo=datetime.UTC)
    busy = refused(503, **{"Retry-After": "Fri, 01 Jan 2027 12:00:09 GMT"})
    with answering([busy, drawn()]) as server:
        client(server.url, time, now=lambda: now).draw(BODY)
    assert time.slept == [9.0]


def test_busy_for_good_ends_with_the_servers_sentence() -> None:
    error = error_of([refused(429, "3 requests are ahead of you")] * 3, max_retries=2)
    assert error.exit_code is ExitCode.BUSY
    assert error.error_type == "EngineBusyError"
    assert str(error) == "3 requests are ahead of you (HTTP 429, 3 attempts)"


def test_a_wait_beyond_the_timeout_is_not_begun() -> None:
    time = FakeTime()
    with answering([refused(503, **{"Retry-After": "3600"})]) as server, pytest.raises(ClientError) as caught:
        client(server.url, time).draw(BODY)
    assert caught.value.exit_code is ExitCode.BUSY
    assert time.slept == []


@pytest.mark.parametrize(
    ("status", "exit_code"),
    [
        (400, ExitCode.BAD_INPUT),
        (413, ExitCode.BAD_INPUT),
        (404, ExitCode.BAD_INPUT),
        (302, ExitCode.BAD_INPUT),
        (408, ExitCode.UNREACHABLE),
        (504, ExitCode.UNREACHABLE),
        (500, ExitCode.SERVER_ERROR),
        (502, ExitCode.SERVER_ERROR),
    ],
)
def test_every_refusal_has_its_exit_code_and_is_not_repeated(status: int, exit_code: ExitCode) -> None:
    error = error_of([refused(status, "steps must be at most 100, got 101", "InvalidRequestError")])
    assert error.exit_code is exit_code
    assert str(error) == f"steps must be at most 100, got 101 (HTTP {status})"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": "no type"}', b"\xff"])
def test_an_error_that_is_not_the_contracts(body: bytes) -> None:
    error = error_of([Canned(status=404, body=body)])
    assert str(error) == "Not Found. Is this the service's URL? (HTTP 404)"


def test_a_servers_words_cannot_steer_the_terminal() -> None:
    assert str(error_of([refused(400, "a\x1b[2Jb\nc\x00")])) == "a [2Jb c  (HTTP 400)"


def test_a_body_that_breaks_off() -> None:
    answer = drawn()
    half = Canned(headers=answer.headers, body=answer.body[:100], declared_bytes=len(answer.body))
    error = error_of([half])
    assert error.exit_code is ExitCode.UNREACHABLE
    assert "broke before the answer was complete" in str(error)


def test_a_picture_that_is_cut_off_though_the_length_fits() -> None:
    answer = drawn()
    error = error_of([Canned(headers=answer.headers, body=answer.body[: len(answer.body) // 2])])
    assert error.exit_code is ExitCode.SERVER_ERROR
    assert "cut off or damaged" in str(error)


@pytest.mark.parametrize(
    ("content_type", "body", "what"),
    [
        ("text/html", b"<html>hello</html>", "got text/html that holds no picture"),
        ("image/jpeg", picture_bytes("PNG"), "got image/jpeg that holds image/png"),
        ("image/png", picture_bytes("PNG"), "got image/png that holds image/png"),
        ("image/jpeg", b"", "got image/jpeg that holds no picture"),
    ],
)
def test_what_is_not_the_picture(content_type: str, body: bytes, what: str) -> None:
    error = error_of([Canned(headers={"Content-Type": content_type}, body=body)])
    assert error.exit_code is ExitCode.SERVER_ERROR
    assert what in str(error)


def test_an_answer_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.client.MAX_ANSWER_BYTES", 50)
    assert "more than 50 bytes" in str(error_of([drawn()]))


def test_nothing_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: refused for sure
        with pytest.raises(ClientError, match="nothing answers at") as caught:
            client(f"http://127.0.0.1:{unused.getsockname()[1]}").draw(BODY)
    assert caught.value.exit_code is ExitCode.UNREACHABLE


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", "", "http://[", "http://127.0.0.1:99999"])
def test_what_is_not_a_url(url: str) -> None:
    with pytest.raises(ClientError, match="is not a URL") as caught:
        client(url).draw(BODY)
    assert caught.value.exit_code is ExitCode.BAD_INPUT


def held_back(send: Callable[[threading.Event], Canned]) -> ClientError:
    release = threading.Event()
    try:
        return error_of([send(release)], timeout_s=0.2)
    finally:
        release.set()


def test_a_server_that_never_answers() -> None:
    error = held_back(lambda release: Canned(before=lambda: release.wait(30.0)))
    assert error.exit_code is ExitCode.UNREACHABLE
    assert "no complete answer after 0.2 s" in str(error)


def test_a_server_that_stops_in_the_middle() -> None:
    """The connection stays open, so only the time can end it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        done = threading.Event()

        def half_an_answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
                done.wait(30.0)

        thread = threading.Thread(target=half_an_answer)
        thread.start()
        with pytest.raises(ClientError, match="no complete answer after"):
            client(url, timeout_s=0.2).draw(BODY)
        done.set()
        thread.join()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.3.2.1", True),
        ("http://localhost:1", True),
        ("http://[::1]:8000", True),
        ("http://192.0.2.1", False),
        ("https://example.org", False),
    ],
)
def test_this_machine_is_never_asked_through_a_proxy(url: str, expected: bool) -> None:
    assert is_loopback(url) is expected


def test_progress_tells_of_waiting() -> None:
    told: list[str] = []
    with answering([refused(503, **{"Retry-After": "2"}), drawn()]) as server:
        client(server.url, on_progress=told.append).draw(BODY)
    assert told == ["drawing", "the server is busy (HTTP 503); again in 2 s", "drawing (attempt 2)"]
