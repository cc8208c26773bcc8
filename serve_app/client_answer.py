"""What came back from the service: a picture that is sure to be one, or why there is none."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Final

import httpx

from serve_app.exit_codes import ExitCode
from serve_app.sniff import HEAD_BYTES, media_type_of

RETRIED: Final = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
_TIMEOUT_STATUSES: Final = (httpx.codes.REQUEST_TIMEOUT, httpx.codes.GATEWAY_TIMEOUT)
_MAX_SHOWN_CHARS: Final = 500


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
        face_similarity: to the reference, 0 to 1, where it was asked for and both show a face.
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
    face_similarity: float | None
    drawn_size: str | None
    model: str | None
    request_id: str | None
    warnings: tuple[str, ...]
    num_attempts: int


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

    declared = content_type(answer)
    found = media_type_of(answer.content[:HEAD_BYTES])
    if declared != media_type or found != media_type:
        raise bad_answer(f"asked for {media_type}, got {printable(declared)} that holds {found or 'no picture'}")
    try:
        with Image.open(io.BytesIO(answer.content)) as picture:
            picture.load()
            width_px, height_px = picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise bad_answer("the picture is cut off or damaged") from error
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
        face_similarity=_number(headers.get("X-Face-Similarity")),
        drawn_size=_text(headers.get("X-Drawn-Size")),
        model=_text(headers.get("X-Model")),
        request_id=_text(headers.get("X-Request-ID")),
        warnings=tuple(printable(value) for value in headers.get_list("X-Warning")),
        num_attempts=num_attempts,
    )


def printable(text: str) -> str:
    """Text of a server for a terminal: no control characters, which could do more than show."""
    return "".join(character if character.isprintable() else " " for character in text)


def content_type(answer: httpx.Response) -> str:
    """The media type that an answer declares, in lower case, without parameters."""
    declared: str = answer.headers.get("Content-Type", "nothing")
    return declared.partition(";")[0].strip().lower()


def bad_answer(what: str) -> ClientError:
    """The error that an answer is not what it should be."""
    return ClientError(
        f"the server's answer is not the picture: {what}", exit_code=ExitCode.SERVER_ERROR, error_type="BadAnswer"
    )


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
