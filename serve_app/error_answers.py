"""The one table that turns any error into an answer.

What a caller sees is the contract's body ``{"error", "type", "details"}``. An error that is not in the table is
answered with a sentence that says nothing about our insides; the log has it in full.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from engine import errors as engine_errors
from serve_app.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    FieldProblem,
    FieldsError,
    HeadersTooLargeError,
    KeyDisabledError,
    KeyRequiredError,
    LimitReachedError,
    MalformedBodyError,
    MethodNotAllowedError,
    NotAcceptableError,
    QuarantinedError,
    QuotaTooSmallError,
    SimilarityNotReachedError,
    StageUnavailableError,
    TooManyRequestsError,
    UnknownPathError,
    UnsupportedMediaTypeError,
    unwrap,
)

INTERNAL_ERROR_TYPE = "InternalError"
INTERNAL_ERROR_MESSAGE = "The service failed while working on this request. Tell its operator the request id."


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
