"""Errors of the HTTP side, and the one table that turns any error into an answer.

    ServeAppError
    ├── FieldsError                one or more fields of the request are missing or malformed
    ├── MalformedBodyError         the body is not one JSON object
    ├── UnknownPathError           no such path
    ├── MethodNotAllowedError      the path exists, the method doesn't
    ├── NotAcceptableError         nothing that ``Accept`` allows can be produced
    ├── BodyTimeoutError           the body arrived too slowly
    ├── BodyTooLargeError          the body is larger than the limit; not read to its end
    ├── UnsupportedMediaTypeError  the body is not declared as JSON
    ├── HeadersTooLargeError       more headers, or longer ones, than anybody needs
    ├── KeyRequiredError           no API key, or one that is not known
    ├── KeyDisabledError           an API key that is no longer taken
    ├── QuotaTooSmallError         the picture takes more of a device than the client may use at all
    ├── LimitReachedError          the client's rate, quota or concurrency; says when to try again
    ├── SimilarityNotReachedError  pictures were drawn, and none is as similar to the reference as was asked for
    ├── TooManyRequestsError       this replica already holds as many requests as it may
    ├── QuarantinedError           replicas died under this request, again and again; it is not run any more
    └── StageUnavailableError      a stage can't be reached

What a caller sees is the contract's body ``{"error", "type", "details"}``. An error that is not in the table
is answered with a sentence that says nothing about our insides; the log has it in full.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from engine import errors as engine_errors

INTERNAL_ERROR_TYPE = "InternalError"
INTERNAL_ERROR_MESSAGE = "The service failed while working on this request. Tell its operator the request id."


class ServeAppError(Exception):
    """Root of the tree. Picklable with its message alone."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FieldProblem:
    """What is wrong with one field. ``problem`` is a full sentence that can stand alone."""

    field: str
    problem: str


class FieldsError(ServeAppError):
    """One or more fields of the request are missing or malformed."""

    def __init__(self, problems: tuple[FieldProblem, ...]) -> None:
        super().__init__(problems)  # args must rebuild the error where it is unpickled
        self.problems = problems

    def __str__(self) -> str:
        first = self.problems[0].problem
        others = len(self.problems) - 1
        return first if not others else f"{first} ({others} more in details.fields)"


class MalformedBodyError(ServeAppError):
    """The body is not one JSON object."""


class UnknownPathError(ServeAppError):
    """No such path."""


class MethodNotAllowedError(ServeAppError):
    """The path exists, the method doesn't."""


class NotAcceptableError(ServeAppError):
    """Nothing that ``Accept`` allows can be produced."""


class BodyTimeoutError(ServeAppError):
    """The body arrived too slowly."""


class BodyTooLargeError(ServeAppError):
    """The body is larger than the limit."""


class UnsupportedMediaTypeError(ServeAppError):
    """The body is not declared as JSON."""


class HeadersTooLargeError(ServeAppError):
    """More headers, or longer ones, than anybody needs."""


class KeyRequiredError(ServeAppError):
    """No API key, or one that is not known.

    Attributes:
        challenge: the ``WWW-Authenticate`` header (RFC 6750, section 3).
    """

    def __init__(self, message: str, is_wrong: bool = False) -> None:
        super().__init__(message, is_wrong)  # args must rebuild the error where it is unpickled
        self.challenge = 'Bearer realm="likeness"' + ', error="invalid_token"' * is_wrong

    def __str__(self) -> str:
        return str(self.args[0])


class KeyDisabledError(ServeAppError):
    """An API key that is no longer taken."""


class QuotaTooSmallError(ServeAppError):
    """The picture takes more of a device than the client may use at all: waiting does not help."""


class LimitReachedError(ServeAppError):
    """The client's rate, quota or concurrency.

    Attributes:
        retry_after_s: when the same request would be taken, if the client sends no other before.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class SimilarityNotReachedError(ServeAppError):
    """Pictures were drawn, and charged, but none reaches ``min_similarity``.

    Attributes:
        min_similarity: what was asked for.
        similarities: of every picture by its seed; None where it shows no face.
        cost_usd: what all of them cost.
    """

    def __init__(self, min_similarity: float, similarities: Mapping[int, float | None], cost_usd: float) -> None:
        super().__init__(min_similarity, similarities, cost_usd)
        self.min_similarity = min_similarity
        self.similarities = similarities
        self.cost_usd = cost_usd

    @property
    def best_similarity(self) -> float | None:
        """None where no picture shows a face."""
        return max((one for one in self.similarities.values() if one is not None), default=None)

    def __str__(self) -> str:
        num, best = len(self.similarities), self.best_similarity
        found = "none shows a face" if best is None else f"the best has {best:g}"
        return (
            f"min_similarity {self.min_similarity:g} was not reached: of {num} picture{'s' * (num > 1)} drawn {found}; "
            "ask for less, for more candidates or another seed, raise ipadapter_strength, or send a clearer photo"
        )


class TooManyRequestsError(ServeAppError):
    """This replica already holds as many requests as it may.

    Attributes:
        retry_after_s: until one of them leaves, as far as can be told.
    """

    def __init__(self, message: str, retry_after_s: float = 2.0) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class QuarantinedError(ServeAppError):
    """Replicas died under this request, again and again; it is not run any more (:mod:`serve_app.quarantine`)."""


class StageUnavailableError(ServeAppError):
    """A stage can't be reached."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """How one class of errors is answered.

    Attributes:
        status: HTTP status.
        type_name: ``type`` in the body; the class's own name where empty.
        public_message: shown instead of the error's own message, where that is meant for operators.
        retry_after_s: sent as ``Retry-After`` and in the details; some errors bring their own.
    """

    status: int
    type_name: str = ""
    public_message: str = ""
    retry_after_s: float | None = None


ANSWERS: dict[type[BaseException], Answer] = {
    # A picture over the limits is a malformed field like any other: 413 is kept for the body as a whole.
    engine_errors.InvalidRequestError: Answer(status=400),
    engine_errors.ReferenceImageError: Answer(status=400),
    engine_errors.UnreadableImageError: Answer(status=400),
    engine_errors.ImageTooLargeError: Answer(status=400),
    engine_errors.FaceNotFoundError: Answer(status=400),
    engine_errors.ModelLoadError: Answer(
        status=503, public_message="The model could not be loaded. Its operator has to look at it.", retry_after_s=60.0
    ),
    engine_errors.EngineBusyError: Answer(status=429),
    engine_errors.DeadlineExceededError: Answer(status=504),
    engine_errors.RequestCancelledError: Answer(status=503, retry_after_s=1.0),
    engine_errors.NumericalError: Answer(status=500),
    engine_errors.OutOfDeviceMemoryError: Answer(status=503, retry_after_s=10.0),
    engine_errors.EngineStoppedError: Answer(status=503, retry_after_s=10.0),
    FieldsError: Answer(status=400, type_name=engine_errors.InvalidRequestError.__name__),
    MalformedBodyError: Answer(status=400),
    UnknownPathError: Answer(status=404),
    MethodNotAllowedError: Answer(status=405),
    NotAcceptableError: Answer(status=406),
    BodyTimeoutError: Answer(status=408),
    BodyTooLargeError: Answer(status=413),
    UnsupportedMediaTypeError: Answer(status=415),
    HeadersTooLargeError: Answer(status=431),
    KeyRequiredError: Answer(status=401),
    KeyDisabledError: Answer(status=403),
    QuotaTooSmallError: Answer(status=403),
    LimitReachedError: Answer(status=429),
    # Not 400, for nothing is wrong with the request; not 5xx, for the same request again has the same end.
    SimilarityNotReachedError: Answer(status=422),
    TooManyRequestsError: Answer(status=429),
    # Not 503: clients would send it again, and what it may do to replicas is why it is not run.
    QuarantinedError: Answer(status=500),
    StageUnavailableError: Answer(status=503, retry_after_s=5.0),
}
"""Every error that is answered on purpose. A test holds that no class of either tree is missing."""

INTERNAL_ANSWER = Answer(status=500, type_name=INTERNAL_ERROR_TYPE, public_message=INTERNAL_ERROR_MESSAGE)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ErrorReply:
    """An error as it goes out: status, the contract's body, extra headers."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def type_name(self) -> str:
        """``type`` of the body."""
        return str(self.body["type"])


def describe(error: BaseException, *, request_id: str) -> ErrorReply:
    """The answer to an error that ended a request."""
    error = unwrap(error)
    answer = ANSWERS.get(type(error), INTERNAL_ANSWER)
    details: dict[str, Any] = {"request_id": request_id}
    if problems := field_problems(error):
        details["fields"] = [dataclasses.asdict(problem) for problem in problems]
    headers = {}
    if isinstance(error, KeyRequiredError):
        headers["WWW-Authenticate"] = error.challenge
    if isinstance(error, SimilarityNotReachedError):
        details |= _similarity_details(error)
        headers["X-Cost-USD"] = f"{error.cost_usd:.6f}"
    retry_after_s = answer.retry_after_s
    if isinstance(error, engine_errors.EngineBusyError | LimitReachedError | TooManyRequestsError):
        retry_after_s = error.retry_after_s
    if retry_after_s is not None:
        details["retry_after_s"] = retry_after_s
        headers["Retry-After"] = str(math.ceil(retry_after_s))
    body = {
        "error": answer.public_message or str(error),
        "type": answer.type_name or type(error).__name__,
        "details": details,
    }
    return ErrorReply(status=answer.status, body=body, headers=headers)


def _similarity_details(error: SimilarityNotReachedError) -> dict[str, Any]:
    candidates = [{"seed": seed, "similarity": one} for seed, one in error.similarities.items()]
    return {"best_similarity": error.best_similarity, "candidates": candidates, "cost_usd": round(error.cost_usd, 9)}


def field_problems(error: BaseException) -> tuple[FieldProblem, ...]:
    """The fields of the request that an error is about, as far as it is about any."""
    match error:
        case FieldsError():
            return error.problems
        case engine_errors.InvalidRequestError():
            return tuple(FieldProblem(field=field, problem=str(error)) for field in error.fields)
        case engine_errors.ReferenceImageError():
            return (FieldProblem(field="reference_image", problem=str(error)),)
        case _:
            return ()


def is_expected(error: BaseException) -> bool:
    """Whether the error is one we answer on purpose. Others are our bugs, and are logged with their traceback."""
    return type(unwrap(error)) in ANSWERS


def unwrap(error: BaseException) -> BaseException:
    """The error that a remote stage raised.

    Ray hands it over as an instance of a class made up on the spot, ``RayTaskError(FaceNotFoundError)``, whose text
    is the remote traceback; the original is its ``cause``.
    """
    seen = 0
    while isinstance(cause := getattr(error, "cause", None), BaseException) and seen < 8:
        error, seen = cause, seen + 1
    return error
