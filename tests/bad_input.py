"""Requests that must be refused, with how. One table for two suites: in process, and through real HTTP."""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from typing import Any

from tests.asgi import body, data_url, picture, picture_url

JSON = {"Content-Type": "application/json"}
MAX_BODY_BYTES = 2 * 2**20
MAX_REFERENCE_BYTES = 2**20
"""The limits under which the table holds, small enough to be overstepped quickly."""

LIMITS = {"max_body_bytes": MAX_BODY_BYTES, "max_reference_bytes": MAX_REFERENCE_BYTES, "body_timeout_s": 4.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadRequest:
    """A request, and the status, type and words with which it must be refused."""

    name: str
    content: bytes
    status: int
    type: str
    says: str
    headers: dict[str, str] = dataclasses.field(default_factory=lambda: dict(JSON))

    def __str__(self) -> str:
        return self.name


def png_bomb(side_px: int = 50_000) -> bytes:
    """A PNG of a few kilobytes whose header promises ``side_px``² pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _field(name: str, says: str, *, type: str = "InvalidRequestError", **changes: Any) -> BadRequest:
    return BadRequest(name=name, content=json.dumps(body(**changes)).encode(), status=400, type=type, says=says)


def _raw(name: str, text: str | bytes, says: str, *, type: str = "MalformedBodyError") -> BadRequest:
    content = text.encode() if isinstance(text, str) else text
    return BadRequest(name=name, content=content, status=400, type=type, says=says)


def _with_literal(field: str, literal: str) -> str:
    """A good body in which one field holds something Python would not write."""
    return json.dumps(body(**{field: "@"})).replace('"@"', literal)


FIELDS = (
    _field("prompt missing", "prompt is required", prompt=...),
    _field("prompt blank", "prompt must not be blank", prompt=" \n\t"),
    _field("prompt empty", "prompt must not be blank", prompt=""),
    _field("prompt too long", "prompt must have at most 4000 characters, got 4001", prompt="a" * 4001),
    _field("prompt a number", "prompt must be a string", prompt=5),
    _field("prompt null", "prompt must be a string", prompt=None),
    _field("prompt with half a character", "prompt must be valid Unicode", prompt="a\ud800"),
    _field("negative prompt too long", "negative_prompt must have at most", negative_prompt="a" * 4001),
    _field("reference missing", "reference_image is required", reference_image=...),
    _field("reference null", "reference_image must be a string", reference_image=None),
    _field("reference a number", "reference_image must be a string", reference_image=1),
    _field("reference empty", "must be a data URL", reference_image=""),
    _field("reference bare base64", "must be a data URL", reference_image=picture_url().partition(",")[2]),
    _field("reference a path", "must be a data URL", reference_image="/etc/passwd"),
    _field("reference a relative path", "must be a data URL", reference_image="../../secret.png"),
    _field("reference a file URL", "must be a data URL", reference_image="file:///etc/passwd"),
    _field("reference a URL", "must be a data URL", reference_image="http://169.254.169.254/latest/meta-data"),
    _field("reference of another media type", "not text/plain", reference_image=data_url(b"hi", "text/plain")),
    _field("reference an SVG", "not image/svg+xml", reference_image=data_url(b"<svg/>", "image/svg+xml")),
    _field("reference not base64", "must start with", reference_image="data:image/png,abc"),
    _field("reference with parameters", "must start with", reference_image="data:image/png;name=a;base64,AAAA"),
    _field("reference bad base64", "broken base64", reference_image="data:image/png;base64,@@@@"),
    _field("reference bad padding", "broken base64", reference_image="data:image/png;base64,AAA"),
    _field("reference with line breaks", "broken base64", reference_image="data:image/png;base64,AAAA\nAAAA"),
    _field("reference URL-safe base64", "broken base64", reference_image="data:image/png;base64,-_-_"),
    _field("reference beyond ASCII", "broken base64", reference_image="data:image/png;base64,ÄÄÄÄ"),
    _field("reference of 0 bytes", "no bytes", reference_image="data:image/png;base64,"),
    _field("width not a multiple of 16", "width must be a multiple of 16, got 1000", width=1000),
    _field("height not a multiple of 16", "height must be a multiple of 16, got 513", height=513),
    _field("width 0", "width must be greater than 0, got 0", width=0),
    _field("width negative", "width must be greater than 0, got -64", width=-64),
    _field("width small", "width must be a multiple of 16 between 64 and 2048", width=16),
    _field("width huge", "width must be a multiple of 16 between 64 and 2048 pixels, got 4096", width=4096),
    _field("width absurd", "width must be at most 65536", width=10**30),
    _field("width a string", 'width must be a whole number, got "1024"', width="1024"),
    _field("height a float", "height must be a whole number, got 1024.0", height=1024.0),
    _field("height a boolean", "height must be a whole number, got true", height=True),
    _field("width null", "width must be a whole number, got null", width=None),
    _field("width a list", "width must be a whole number", width=[1024]),
    _field("steps 0", "steps must be at least 1, got 0", steps=0),
    _field("steps 10000", "steps must be at most 100, got 10000", steps=10_000),
    _field("steps a string", "steps must be a whole number", steps="20"),
    _field("steps a boolean", "steps must be a whole number, got false", steps=False),
    _field("cfg below 1", "cfg must be at least 1", cfg=0.5),
    _field("cfg huge", "cfg must be at most 30", cfg=31),
    _field("cfg a string", 'cfg must be a number, got "1.0"', cfg="1.0"),
    _field("cfg a boolean", "cfg must be a number, got true", cfg=True),
    _field("strength 1.5", "ipadapter_strength must be at most 1", ipadapter_strength=1.5),
    _field("strength negative", "ipadapter_strength must be at least 0", ipadapter_strength=-0.1),
    _field("guidance negative", "guidance must be at least 0", guidance=-1),
    _field("seed -2", "seed must be at least -1, got -2", seed=-2),
    _field("seed of 64 bits", "seed must be at most 9223372036854775807", seed=2**63),
    _field("seed a float", "seed must be a whole number", seed=1.5),
    _field("provider TPU", "face_provider must be 'CPU' or 'GPU', got \"TPU\"", face_provider="TPU"),
    _field("provider in lower case", "face_provider must be", face_provider="cpu"),
    _field("policy unknown", "face_policy must be 'prefer', 'require' or 'ignore'", face_policy="maybe"),
    _field("scheduler unknown", "scheduler must be", scheduler="karras"),
    _field("wait 0", "max_wait_s must be greater than 0.0, got 0", max_wait_s=0),
    _field("wait negative", "max_wait_s must be greater than 0", max_wait_s=-1.5),
    _field("wait a string", "max_wait_s must be a number", max_wait_s="20"),
    _field("priority unknown", "priority must be 'low', 'normal' or 'high', got \"urgent\"", priority="urgent"),
    _field("priority a number", "priority must be 'low', 'normal' or 'high', got 2", priority=2),
    _field("preview negative", "preview_every must be at least 0, got -1", preview_every=-1),
    _field("preview a float", "preview_every must be a whole number, got 1.5", preview_every=1.5),
    _field("unknown field", '"colour" is not a known field', colour="red"),
    _field("misspelt field", "did you mean guidance?", guidence=4.0),
    _field("dunder field", "is not a known field", __class__="x"),
)

BODIES = (
    _raw("cfg NaN", _with_literal("cfg", "NaN"), "holds NaN"),
    _raw("cfg Infinity", _with_literal("cfg", "Infinity"), "holds Infinity"),
    _raw("strength -Infinity", _with_literal("ipadapter_strength", "-Infinity"), "holds -Infinity"),
    _raw("cfg 1e999", _with_literal("cfg", "1e999"), "cfg must be a finite number", type="InvalidRequestError"),
    _raw("width 1e400", _with_literal("width", "1e400"), "width must be a whole", type="InvalidRequestError"),
    _raw("width of 5000 digits", _with_literal("width", "9" * 5000), "too many digits"),
    _raw("key twice", '{"prompt": "a", "prompt": "b"}', 'names "prompt" more than once'),
    _raw("body empty", "", "must be JSON"),
    _raw("body not JSON", "prompt=hello", "must be JSON: Expecting value at line 1, column 1"),
    _raw("body cut off", json.dumps(body())[:-5], "must be JSON"),
    _raw("body with a tail", json.dumps(body()) + "x", "must be JSON"),
    _raw("body an array", json.dumps([body()]), "must be a JSON object"),
    _raw("body a string", '"prompt"', "must be a JSON object"),
    _raw("body null", "null", "must be a JSON object"),
    _raw("body of many fields", json.dumps({f"f{i}": 0 for i in range(40_000)}), "an object with 40000 names"),
    _raw("body of many values", '{"prompt": [' + "{}," * 100_000 + "0]}", "too many values"),
    _raw("body not UTF-8", b'{"prompt": "\xff"}', "must be UTF-8"),
    _raw("body in UTF-16", json.dumps(body()).encode("utf-16"), "must be UTF-8"),
    _raw("body nested deeply", "[" * 40_000, "nested too deeply"),
    *(
        BadRequest(
            name=f"content type {content_type or 'missing'}",
            content=json.dumps(body()).encode(),
            headers={"Content-Type": content_type} if content_type else {},
            status=415,
            type="UnsupportedMediaTypeError",
            says="Content-Type header must be application/json",
        )
        for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "")
    ),
    BadRequest(
        name="compressed body",
        content=zlib.compress(json.dumps(body()).encode()),
        headers=JSON | {"Content-Encoding": "deflate"},
        status=415,
        type="UnsupportedMediaTypeError",
        says="must not be compressed",
    ),
    BadRequest(
        name="Accept text/html",
        content=json.dumps(body()).encode(),
        headers=JSON | {"Accept": "text/html"},
        status=406,
        type="NotAcceptableError",
        says="allows none of",
    ),
    BadRequest(
        name="body over the limit",
        content=json.dumps(body(prompt="a" * MAX_BODY_BYTES)).encode(),
        status=413,
        type="BodyTooLargeError",
        says=f"at most {MAX_BODY_BYTES} bytes",
    ),
)

PICTURES = (
    _field(
        "picture over the byte limit",
        f"at most {MAX_REFERENCE_BYTES} bytes, got {MAX_REFERENCE_BYTES + 1}",
        type="ImageTooLargeError",
        reference_image=data_url(bytes(MAX_REFERENCE_BYTES + 1)),
    ),
    _field(
        "picture truncated",
        "picture",
        type="UnreadableImageError",
        reference_image=data_url(picture(side_px=200)[:120]),
    ),
    _field(
        "JPEG truncated",
        "picture",
        type="UnreadableImageError",
        reference_image=data_url(picture(format_="JPEG", side_px=200)[:-200], "image/jpeg"),
    ),
    _field("not a picture", "picture", type="UnreadableImageError", reference_image=data_url(b"hello" * 50)),
    _field(
        "a script under a picture's name",
        "picture",
        type="UnreadableImageError",
        reference_image=data_url(b"#!/bin/sh\nrm -rf /\n" * 20),
    ),
    _field("bomb", "pixels", type="ImageTooLargeError", reference_image=data_url(png_bomb())),
    _field(
        "no face where one is required",
        "face",
        type="FaceNotFoundError",
        face_policy="require",
        reference_image=picture_url(side_px=64),
    ),
)
"""Those that only the face stage can tell."""
