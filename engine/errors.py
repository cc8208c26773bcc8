"""Every error the engine raises on purpose.

    EngineError
    ├── InvalidRequestError          the caller asked for something that can't be drawn
    ├── ReferenceImageError          the reference picture can't be used
    │   ├── UnreadableImageError     not an image, truncated, or of a kind that is not accepted
    │   ├── ImageTooLargeError       more bytes or pixels than the limits allow
    │   └── FaceNotFoundError        ``face_policy: require`` and no face in the picture
    ├── ModelLoadError               a model folder is incomplete, corrupt or of another model
    ├── EngineBusyError              the engine's queue is full, or too long for the request; says when to try again
    ├── DeadlineExceededError        the request was not finished within its ``max_wait_s`` or the operator's limit
    ├── RequestCancelledError        the caller went away, or asked to stop
    ├── NumericalError               the network produced infinities or NaN for this request
    ├── OutOfDeviceMemoryError       this request did not fit on the device; others may
    └── EngineStoppedError           the engine is closed or broke; nothing further is accepted

Messages carry the values and say what to change. They are shown to callers, so they never hold a server path,
a prompt or picture content; ``ModelLoadError`` is the exception: only operators see it.
"""


class EngineError(Exception):
    """Root of the tree. Picklable with its message alone, because errors cross process boundaries."""

    @property
    def message(self) -> str:
        return str(self)


class InvalidRequestError(EngineError):
    """The request's own values can't be served (size, steps, strength …).

    Attributes:
        fields: names of the values at fault, as callers know them; empty where it is none in particular.
    """

    def __init__(self, message: str, fields: tuple[str, ...] = ()) -> None:
        super().__init__(message, fields)  # args must rebuild the error where it is unpickled
        self.fields = fields

    def __str__(self) -> str:
        return str(self.args[0])


class ReferenceImageError(EngineError):
    """The reference picture can't be used."""


class UnreadableImageError(ReferenceImageError):
    """The bytes are not a complete image of an accepted kind."""


class ImageTooLargeError(ReferenceImageError):
    """More bytes or pixels than the limits allow. Raised before pixels are decoded."""


class FaceNotFoundError(ReferenceImageError):
    """No face was found and the face policy requires one."""


class ModelLoadError(EngineError):
    """A model folder is incomplete, corrupt, or holds another model. Names file, key, expected and found."""


class EngineBusyError(EngineError):
    """The engine already holds as much waiting work as it may, or can't finish this request within its ``max_wait_s``.

    Attributes:
        retry_after_s: when the same request would be taken, as far as can be predicted.
    """

    def __init__(self, message: str, retry_after_s: float = 5.0) -> None:
        super().__init__(message, retry_after_s)  # args must rebuild the error where it is unpickled
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class DeadlineExceededError(EngineError):
    """The request was not finished within its own ``max_wait_s`` or the operator's time limit."""


class RequestCancelledError(EngineError):
    """The request was cancelled before it finished."""


class NumericalError(EngineError):
    """The network produced infinities or NaN: a picture would be noise, so none is returned."""


class OutOfDeviceMemoryError(EngineError):
    """The device ran out of memory while working on this request."""


class EngineStoppedError(EngineError):
    """The engine is closed or broken and takes no further work."""
