"""What ``/docs`` and ``/openapi.json`` say beyond the routes' types: runnable requests, an example of every error."""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any, Final

from starlette.responses import Response

from engine import errors as engine_errors
from engine.profile import ModelProfile
from serve_app import errors
from serve_app.contract import GenerationBody, parse_body
from serve_app.contract_answers import ErrorBody, GenerationAnswer, ReadyAnswer
from serve_app.error_answers import ANSWERS, describe
from serve_app.errors import FieldProblem, FieldsError
from serve_app.events import HEARTBEAT, drawing_event, last_event
from serve_app.negotiation import EVENT_STREAM, PICTURES
from serve_app.sample import SAMPLE_FACE_URL
from serve_app.stages import FLUX_REPLICA, DrawQueued, DrawRestarted, DrawStep, StageStarting
from serve_app.workflow import graph_from_request

_REQUEST_ID: Final = "3f8a0c52d1e94b7f9d2a6c1b5e804f73"

ERROR_EXAMPLES: Final[tuple[Exception, ...]] = (
    FieldsError((FieldProblem(field="width", problem="width must be a multiple of 16, got 1000"),)),
    engine_errors.InvalidRequestError("steps must be at most 100, got 10000", fields=("steps",)),
    engine_errors.UnreadableImageError("reference_image is not a complete picture"),
    engine_errors.ImageTooLargeError("reference_image must have at most 20971520 bytes, got 31457280"),
    engine_errors.FaceNotFoundError(
        'no face was found in the reference picture; send one that shows a face, or face_policy "prefer"'
    ),
    errors.MalformedBodyError("the body must be JSON: Expecting value at line 1, column 1"),
    errors.UnknownPathError("no such path; GET /docs shows what there is"),
    errors.MethodNotAllowedError("this path takes POST, not GET"),
    errors.NotAcceptableError("the Accept header allows none of image/jpeg, image/png, image/webp, application/json"),
    errors.BodyTimeoutError("the body did not arrive within 30 s"),
    errors.BodyTooLargeError("the body must have at most 29360128 bytes; send a smaller reference_image"),
    errors.UnsupportedMediaTypeError('the Content-Type header must be application/json, not "text/plain"'),
    errors.HeadersTooLargeError("the request has 5000 headers; at most 100 are read"),
    errors.KeyRequiredError("an API key is required; send it as Authorization: Bearer KEY, or as X-API-Key: KEY"),
    errors.KeyDisabledError("this API key is disabled; ask the service's operator for another"),
    errors.QuotaTooSmallError("this picture takes about 30 s of a device; your quota is 20 s in 3600 s"),
    errors.LimitReachedError("you may send 30 requests a minute; try again in 2 s", 2.0),
    errors.SimilarityNotReachedError(0.7, {42: 0.6132, 43: 0.5519, 44: None, 45: 0.4903}, 0.008316),
    errors.TooManyRequestsError("64 requests are being worked on; try again shortly"),
    engine_errors.EngineBusyError("the work that is here takes 58 s, longer than max_wait_s", retry_after_s=41.0),
    engine_errors.ModelLoadError(""),
    engine_errors.RequestCancelledError("the request was cancelled"),
    engine_errors.NumericalError("the network produced infinite values for this request"),
    engine_errors.OutOfDeviceMemoryError("the picture did not fit on the device; ask for a smaller one, or try again"),
    engine_errors.EngineStoppedError("the engine is closed"),
    errors.QuarantinedError(
        "3 replicas ended while they worked on this request, so it is not run again for the next 5 minutes; change it, "
        "or tell the service's operator the request id"
    ),
    errors.StageUnavailableError("the FluxReplica stage can't be reached; try again shortly"),
    engine_errors.DeadlineExceededError("the picture was not finished within 300 s"),
    RuntimeError("never shown"),
)
"""One error of every class that callers can meet; a test holds that none is missing."""

_HEADERS: Final = {
    "X-Cost-USD": "US dollars, six decimals.",
    "X-Execution-Time-Sec": "Seconds from the first byte read to the answer, three decimals.",
    "X-GPU-Type": "The device that drew.",
    "X-Request-Id": "Names this request in every log.",
    "X-Seed": "The seed that was used; of interest where -1 was asked for.",
    "X-Model": "The profile that was served.",
    "X-Image-Size": "Width x height of the picture.",
    "X-Drawn-Size": "Width x height the model drew at; smaller where the picture was scaled up.",
    "X-Face-Similarity": "How alike the faces are, 0 to 1, or `none`; absent where it was not asked for.",
    "X-Candidates": "Every picture drawn, as `seed=similarity`; absent where similarity was not asked for.",
    "X-Warning": "What went otherwise than asked; absent where nothing did.",
    "Server-Timing": "Milliseconds by stage.",
}


_LATE_ERROR: Final = describe(errors.StageUnavailableError("a stage can't be reached"), request_id=_REQUEST_ID)
_EVENTS: Final = b"".join(
    (
        drawing_event(StageStarting(stage=FLUX_REPLICA, elapsed_s=12.0, expected_s=95.0)),
        drawing_event(DrawQueued(position=3, predicted_wait_s=1.9, predicted_device_s=4.2)),
        drawing_event(DrawStep(step=1, num_steps=20, remaining_s=4.0)),
        drawing_event(DrawStep(step=2, num_steps=20, remaining_s=3.8, preview=b"...")),
        drawing_event(DrawRestarted()),
        HEARTBEAT,
        b'event: done\ndata: {"request_id": "...", "image": "data:image/jpeg;base64,...", ...}\n\n',
        last_event(_LATE_ERROR.status, json.dumps(_LATE_ERROR.body).encode()),
    )
).decode()
"""One of each; a stream ends with ``done``, the answer in JSON, or with ``error``."""


def version() -> str:
    """The installed package's version."""
    return importlib.metadata.version("likeness")


def description(profile: ModelProfile) -> str:
    """The introduction on top of ``/docs``."""
    allowed = "allowed" if profile.licence.is_commercial_use_allowed else "not allowed"
    return (
        f"Serves **{profile.title}** under the [{profile.licence.name}]({profile.licence.url}); commercial use of its "
        f"weights is {allowed}.\n\nOne photo and a prompt become a picture of the same person. The answer is a JPEG; "
        "`Accept: image/png`, `image/webp` or `application/json` gives another form, and `text/event-stream` tells how "
        "it goes until the picture is there; `text/event-stream, image/png;q=0.9` makes it a PNG. Every error is "
        '`{"error", "type", "details"}`; in a stream, once it began, it is the event `error`.\n\n'
        "From a shell, with the body below in `request.json`:\n\n"
        "```\ncurl -s http://127.0.0.1:8000/flux-ipadapter-faceid -H 'Content-Type: application/json' "
        "-d @request.json -o out.jpg -D -\n```"
    )


def generation_route(profile: ModelProfile) -> dict[str, Any]:
    """Keyword arguments of the picture route: request schema with this model's limits, answers, examples."""
    return {
        "response_class": Response,
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": request_schema(profile), "examples": request_examples()}},
            }
        },
        "responses": {200: _success(), **_error_responses()},
    }


def workflow_route() -> dict[str, Any]:
    """Keyword arguments of the workflow route; its answers are those of the picture route."""
    body = parse_body(request_examples()["all_defaults"]["value"])
    schema = {"type": "object", "description": "ComfyUI's API format: node id to class_type and inputs."}
    return {
        "response_class": Response,
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": schema, "example": graph_from_request(body)}},
            }
        },
        "responses": {200: _success(), **_error_responses()},
    }


def request_schema(profile: ModelProfile) -> dict[str, Any]:
    """The request's JSON schema with the profile's limits in it."""
    schema = GenerationBody.model_json_schema()
    size, limits = profile.size, profile.limits
    for side in ("width", "height"):
        schema["properties"][side] |= {"minimum": size.min_side_px, "maximum": size.max_side_px}
        schema["properties"][side].pop("exclusiveMinimum", None)
    for prompt in ("prompt", "negative_prompt"):
        schema["properties"][prompt]["maxLength"] = limits.max_prompt_chars
    for name, ceiling in (("steps", limits.max_num_steps), ("cfg", limits.max_cfg), ("guidance", limits.max_guidance)):
        schema["properties"][name]["maximum"] = ceiling
    return schema


def request_examples() -> dict[str, dict[str, Any]]:
    """Bodies that can be sent as they are."""
    smallest = {"prompt": "A professional portrait in front of a bookshelf", "reference_image": SAMPLE_FACE_URL}
    contract = {
        "negative_prompt": "",
        "width": 1024,
        "height": 1024,
        "steps": 20,
        "cfg": 1.0,
        "seed": 42,
        "ipadapter_strength": 0.8,
        "face_provider": "CPU",
    }
    further = {"seed": -1, "cfg": 2.0, "negative_prompt": "blurry", "width": 512, "height": 768, "steps": 8}
    return {
        "smallest": {"summary": "A prompt and a photo", "value": smallest},
        "all_defaults": {"summary": "Every field of the contract", "value": smallest | contract},
        "further": {
            "summary": "Random seed, true guidance, a face required",
            "value": smallest | contract | further | {"guidance": 4.0, "face_policy": "require", "scheduler": "flux"},
        },
    }


def _success() -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        "description": "The picture, in the form that `Accept` asks for; a JPEG where it doesn't say.",
        "model": GenerationAnswer,
        "content": {
            **dict.fromkeys(PICTURES, binary),
            EVENT_STREAM: {"schema": {"type": "string"}, "examples": {"events": {"value": _EVENTS}}},
        },
        "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()},
    }


def _error_responses() -> dict[int | str, dict[str, Any]]:
    replies = [(error, describe(error, request_id=_REQUEST_ID)) for error in ERROR_EXAMPLES]
    responses: dict[int | str, dict[str, Any]] = {}
    for error, reply in replies:
        if isinstance(error, errors.UnknownPathError | errors.MethodNotAllowedError):
            continue  # the router's answers, on no route of its own
        entry = responses.setdefault(reply.status, {"model": ErrorBody, "description": "", "content": {}})
        examples = entry["content"].setdefault("application/json", {"examples": {}})["examples"]
        examples[type(error).__name__ if type(error) in ANSWERS else reply.type_name] = {"value": reply.body}
        types = dict.fromkeys(example["value"]["type"] for example in examples.values())
        entry["description"] = ", ".join(f"`{name}`" for name in types)
        if reply.headers:
            entry["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return dict(sorted(responses.items()))


READY_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": ReadyAnswer, "description": "Every stage can serve."},
    503: {"model": ErrorBody, "description": "Some stage can't; `details.stages` says which and why."},
}
METRICS_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "Prometheus text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}
