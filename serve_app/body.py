"""Reading a request's body: counted while it is read, then parsed as strictly as JSON allows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, NoReturn

from starlette.requests import Request

from serve_app.disconnect import ClientGoneError
from serve_app.errors import BodyTooLargeError, MalformedBodyError, UnsupportedMediaTypeError

JSON_MEDIA_TYPE: Final = "application/json"

MAX_KEYS: Final = 100
"""Of one JSON object. Each unknown one is answered with a sentence of its own, and a body has room for millions."""

MAX_PUNCTUATION: Final = 50_000
"""Commas, braces and brackets in a body, prompts included. Python takes 5 s for a body of 28 MiB made of ``{},``, and
this process answers nobody meanwhile; counting them first takes 60 ms. A request has a dozen, and its prompts."""


def check_content_type(headers: Mapping[str, str]) -> None:
    """Refuse a body that is not declared as JSON.

    Also one that declares nothing: a web page may send such a body, or ``text/plain``, across sites without the
    browser asking us first, and so spend a GPU that answers on localhost. A JSON content type makes it ask.

    Raises:
        UnsupportedMediaTypeError: any other content type, or none.
    """
    declared = headers.get("content-type", "")
    media_type = declared.partition(";")[0].strip().lower()
    if media_type != JSON_MEDIA_TYPE:
        got = f"not {json.dumps(media_type[:80])}" if media_type else "and it was missing"
        raise UnsupportedMediaTypeError(f"the Content-Type header must be {JSON_MEDIA_TYPE}, {got}")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaTypeError("the body must not be compressed: send it without Content-Encoding")


async def read_body(request: Request, *, max_bytes: int) -> bytes:
    """The whole body, or an error as soon as it is known to be too large.

    Raises:
        BodyTooLargeError: the declared or the real size is above the limit; nothing further is read.
        ClientGoneError: the connection ended before the body did.
    """
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    num_bytes = 0
    stream = request.stream()
    while (chunk := await _next_chunk(stream)) is not None:
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


async def _next_chunk(stream: AsyncIterator[bytes]) -> bytes | None:
    """None at the end. Whatever the server's channel raises means that nobody is there: Ray Serve's proxy does not say
    "disconnected" to a body that is being read, but lets the reading fail."""
    try:
        return await anext(stream, None)
    except Exception as error:
        raise ClientGoneError from error


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body must have at most {max_bytes} bytes; send a smaller reference_image")


def parse_json_object(body: bytes) -> dict[str, Any]:
    """A JSON object, with nothing Python's parser is lenient about: no NaN, no key twice, UTF-8 only.

    Raises:
        MalformedBodyError: anything else. The message names line and column, never the content.
    """
    if sum(body.count(mark) for mark in (b",", b"{", b"[")) > MAX_PUNCTUATION:
        raise MalformedBodyError("the body holds too many values; it must be one flat JSON object")
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise MalformedBodyError(f"the body must be UTF-8; byte {error.start} is not") from None
    except json.JSONDecodeError as error:
        raise MalformedBodyError(
            f"the body must be JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise MalformedBodyError("the body is nested too deeply; it must be one flat JSON object") from None
    except ValueError:
        # Python refuses to convert integers of more than sys.int_info.default_max_str_digits digits.
        raise MalformedBodyError("the body holds a number with too many digits") from None
    if not isinstance(value, dict):
        raise MalformedBodyError("the body must be a JSON object, {…}, and not a list, string or number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise MalformedBodyError(f"the body holds an object with {len(pairs)} names; at most {MAX_KEYS} are read")
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise MalformedBodyError(f"the body names {json.dumps(key[:40])} more than once")
        values[key] = value
    return values


def _refuse_constant(literal: str) -> NoReturn:
    raise MalformedBodyError(f"the body holds {literal}, which is not JSON; numbers must be finite")
