"""Errors of the HTTP side, in one tree. How each is answered: :mod:`serve_app.error_answers`.

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
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


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


def unwrap(error: BaseException) -> BaseException:
    """The error that a remote stage raised.

    Ray hands it over as an instance of a class made up on the spot, ``RayTaskError(FaceNotFoundError)``, whose text
    is the remote traceback; the original is its ``cause``.
    """
    seen = 0
    while isinstance(cause := getattr(error, "cause", None), BaseException) and seen < 8:
        error, seen = cause, seen + 1
    return error
