"""The JSON contract of ``POST /flux-ipadapter-faceid`` as types: what callers send.

What they get is in :mod:`serve_app.contract_answers`.

Types are strict: ``"1024"``, ``1024.0`` and ``true`` are not a width. **Unknown fields are refused**, with the nearest
known name: a misspelt ``guidence`` that is silently ignored costs a minute of GPU and yields another picture than the
one asked for, while callers that send exactly the contract's fields never notice.

Here is what is true of any model; what depends on the profile (largest size, most steps, longest prompt) is
the profile's to check, through :meth:`engine.profile.ModelProfile.check_request`.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import ErrorDetails

from engine.profile import SIZE_STEP_PX
from engine.request import MAX_SEED
from serve_app import data_url
from serve_app.data_url import Picture
from serve_app.errors import FieldProblem, FieldsError
from serve_app.stages import FacePolicy, FaceProvider, Priority

RANDOM_SEED: Final = -1
"""Asks for a random seed; the one that was drawn is reported back."""

_MAX_ECHO_CHARS: Final = 40
_SECRET_FIELDS: Final = frozenset({"prompt", "negative_prompt", "reference_image"})
"""Never repeated in a message: error bodies end up in logs."""


def _unicode(text: str) -> str:
    """JSON can write half a character (``"\\ud800"``); no tokenizer can read it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode, without lone surrogates") from None
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Text = Annotated[str, AfterValidator(_unicode)]


def _picture(value: Any) -> Picture:
    if not isinstance(value, str):
        raise ValueError("must be a string that holds a data URL")
    return data_url.parse(value)


_MAX_SIDE_PX: Final = 65_536
_MAX_STEPS: Final = 1_000_000
"""Far above any profile's limit, which speaks for itself; they keep absurd numbers out of messages."""

Side = Annotated[int, Field(gt=0, le=_MAX_SIDE_PX, multiple_of=SIZE_STEP_PX)]


class GenerationBody(BaseModel):
    """The request. Every field but the first two has the contract's default."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, title="GenerationRequest")

    prompt: Annotated[Text, AfterValidator(_not_blank), Field(description="What to draw.", min_length=1)]
    reference_image: Annotated[
        Picture,
        PlainValidator(_picture),
        WithJsonSchema({"type": "string", "pattern": "^data:image/(jpeg|png|webp|gif);base64,"}),
        Field(description="The face to keep: `data:image/<jpeg|png|webp|gif>;base64,…`. Paths and links are refused."),
    ]
    negative_prompt: Text = Field(
        default="", description="What to steer away from. Used only where `cfg` > 1 (a second forward pass a step)."
    )
    width: Side = Field(default=1024, description="Pixels, a multiple of 16.")
    height: Side = Field(default=1024, description="Pixels, a multiple of 16.")
    steps: int = Field(default=20, ge=1, le=_MAX_STEPS, description="Sampler steps.")
    cfg: float = Field(
        default=1.0, ge=1.0, allow_inf_nan=False, description="True classifier-free guidance. 1.0 is off."
    )
    seed: int = Field(
        default=42,
        ge=RANDOM_SEED,
        le=MAX_SEED,
        description="Same request and seed, same image. -1 draws a random one and reports it back.",
    )
    ipadapter_strength: float = Field(
        default=0.8, ge=0.0, le=1.0, allow_inf_nan=False, description="Weight of the adapter's image attention."
    )
    face_provider: FaceProvider = Field(default="CPU", description="Where the reference is encoded.")
    guidance: float = Field(
        default=3.5, ge=0.0, allow_inf_nan=False, description="The model's distilled guidance (an embedding)."
    )
    face_policy: FacePolicy | None = Field(
        default=None,
        description="`prefer` crops the largest face and falls back to the whole picture with a warning; `require` "
        "refuses a picture without a face; `ignore` takes the whole picture. Left out: the deployment's default.",
    )
    scheduler: Literal["simple", "flux"] = Field(
        default="simple", description="`simple` is ComfyUI's; `flux` moves the shift with the picture's size."
    )
    max_wait_s: float | None = Field(
        default=None,
        gt=0.0,
        allow_inf_nan=False,
        description="Most seconds from sending to the finished picture. Refused at once where that can't be: with 429 "
        "because of the work that is here already, with 504 where the picture alone takes longer; given up with 504 "
        "when the time is over. Null waits as long as the service allows.",
    )
    priority: Priority = Field(
        default="normal",
        description="`high` is drawn before `normal`, `low` after it; nobody waits for ever. `high` takes an API key, "
        "unless the service allows it to all: else it is drawn as `normal`, with a warning.",
    )
    preview_every: int = Field(
        default=0,
        ge=0,
        le=_MAX_STEPS,
        description="A small preview with every so many steps of an event stream; 0 is none. Without an event stream "
        "it means nothing.",
    )
    score: bool = Field(
        default=False,
        description="Measure how alike the face in the picture and the one in the reference are, 0 to 1; from 0.5 on a "
        "face-recognition network takes them for one person. This and the next two fields need a service that measures "
        "faces, see `max_candidates` of `/v1/models`.",
    )
    num_candidates: int = Field(
        default=1,
        ge=1,
        le=_MAX_STEPS,
        description="Pictures to draw, with `seed` and the seeds after it; the answer is the one most alike. All are "
        "charged.",
    )
    min_similarity: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="What the picture must reach; at 0 it must show a face. Candidates are then drawn one after "
        "another until one does, and where none of `num_candidates` does, the answer is 422 with every similarity.",
    )


def parse_body(values: Mapping[str, Any]) -> GenerationBody:
    """A checked request from a JSON object. Raises FieldsError with every problem, never only the first."""
    try:
        return GenerationBody.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=True, include_input=True)
        raise FieldsError(tuple(_problem(detail) for detail in found)) from None


def _problem(detail: ErrorDetails) -> FieldProblem:
    field = str(detail["loc"][0])
    context = detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            sentence = f"{field} is required"
        case "extra_forbidden":
            return _unknown_field(field)
        case "string_type":
            sentence = f"{field} must be a string"
        case "string_too_short":
            sentence = f"{field} must not be blank"
        case "int_type" | "int_from_float" | "int_parsing_size":
            sentence = f"{field} must be a whole number{_echo(field, detail['input'])}"
        case "float_type":
            sentence = f"{field} must be a number{_echo(field, detail['input'])}"
        case "finite_number":
            sentence = f"{field} must be a finite number"
        case "greater_than":
            sentence = f"{field} must be greater than {context['gt']}{_echo(field, detail['input'])}"
        case "greater_than_equal":
            sentence = f"{field} must be at least {context['ge']}{_echo(field, detail['input'])}"
        case "less_than_equal":
            sentence = f"{field} must be at most {context['le']}{_echo(field, detail['input'])}"
        case "multiple_of":
            sentence = f"{field} must be a multiple of {context['multiple_of']}{_echo(field, detail['input'])}"
        case "literal_error":
            sentence = f"{field} must be {context['expected']}{_echo(field, detail['input'])}"
        case "value_error":
            sentence = f"{field} {context['error']}"
        case _:
            sentence = f"{field}: {detail['msg']}"
    return FieldProblem(field=field, problem=sentence)


def _unknown_field(name: str) -> FieldProblem:
    known = GenerationBody.model_fields
    shown = json.dumps(name[:_MAX_ECHO_CHARS])
    near = difflib.get_close_matches(name[:_MAX_ECHO_CHARS], known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return FieldProblem(field=name[:_MAX_ECHO_CHARS], problem=f"{shown} is not a known field; {hint}")


def _echo(field: str, value: Any) -> str:
    """``, got 17``: the value, where it is short and not the caller's private content."""
    if field in _SECRET_FIELDS or isinstance(value, dict | list):
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return ", got a number that is not finite"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return ", got a number of more than 38 digits"
    shown = json.dumps(value)
    return f", got {shown}" if len(shown) <= _MAX_ECHO_CHARS else ""
