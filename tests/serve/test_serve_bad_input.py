"""Everything that must be refused, through real HTTP: Serve's proxy, the ingress replica, the face stage."""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from tests.asgi import URL
from tests.bad_input import BODIES, FIELDS, MAX_BODY_BYTES, PICTURES, BadRequest
from tests.serve.conftest import RunningService

pytestmark = pytest.mark.serve

OUR_FOLDERS = (str(Path(__file__).parents[2]), sys.prefix, tempfile.gettempdir(), "site-packages")
TELLTALES = ("Traceback", 'File "', ".py", *OUR_FOLDERS, "ray::", "pid=", "passwd", "169.254")
"""What no answer may hold: tracebacks, paths, our insides, and the values that were sent."""


@pytest.mark.parametrize("bad", [*FIELDS, *BODIES, *PICTURES], ids=str)
def test_refused(service: RunningService, bad: BadRequest) -> None:
    response = service.client.post(URL, content=bad.content, headers=bad.headers)
    answer = response.json()
    assert (response.status_code, answer["type"]) == (bad.status, bad.type), answer
    assert response.headers["content-type"] == "application/json"
    assert bad.says in answer["error"]
    assert answer.keys() == {"error", "type", "details"}
    assert [telltale for telltale in TELLTALES if telltale in response.text] == []
    assert answer["details"]["request_id"] == response.headers["x-request-id"]
    assert service.client.get("/ready").status_code == 200


def test_still_serving_after_all_that(service: RunningService) -> None:
    assert service.draw().status_code == 200


def answer_to(connection: socket.socket) -> tuple[int, str]:
    """Status and error type of an answer, read off the wire."""
    received = b""
    while b"\r\n\r\n" not in received or b'"type"' not in received:
        received += connection.recv(65536)
    head, _, content = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), str(json.JSONDecoder().raw_decode(content.decode())[0]["type"])


def head_of(*lines: str) -> bytes:
    return "\r\n".join(
        (f"POST {URL} HTTP/1.1", "Host: likeness", "Content-Type: application/json", *lines, "", "")
    ).encode()


def test_a_body_declared_too_large_is_refused_before_it_is_sent(service: RunningService) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        connection.sendall(head_of("Content-Length: 150000000"))
        assert answer_to(connection) == (413, "BodyTooLargeError")


def test_a_chunked_body_is_refused_when_it_grows_too_large(service: RunningService) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        connection.sendall(head_of("Transfer-Encoding: chunked"))
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        for _ in range(MAX_BODY_BYTES // 0x10000 + 1):
            connection.sendall(chunk)
        # The body is not at its end: nothing says so yet, and the answer is there.
        assert answer_to(connection) == (413, "BodyTooLargeError")


def test_a_body_that_stops_arriving_is_given_up(service: RunningService) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        connection.sendall(head_of("Content-Length: 1000") + b'{"prompt": ')
        assert answer_to(connection) == (408, "BodyTimeoutError")
    assert service.client.get("/ready").status_code == 200
