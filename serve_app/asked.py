"""What a request asks for, once its body is checked: the jobs of the two stages, as pure functions of the body."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from engine.errors import ImageTooLargeError
from engine.request import ImageRequest
from serve_app.candidates import LikenessWish
from serve_app.contract import GenerationBody
from serve_app.contract_answers import WarningBody
from serve_app.errors import FieldProblem, FieldsError
from serve_app.negotiation import EVENT_STREAM, Negotiated, PictureType
from serve_app.settings import AppSettings, IdentitySettings, PictureSettings
from serve_app.stages import FaceJob, PictureEncoding, Priority

PRIORITIES: Final[Mapping[Priority, int]] = {"low": 0, "normal": 1, "high": 2}

PRIORITY_LOWERED: Final = "priority_lowered"
"""Code of the warning that the picture was drawn with a lower priority than asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A checked request: the form of its answer, and the jobs of the two stages.

    Attributes:
        request: still without its reference, which the face stage makes.
        wish: how many pictures are drawn, and what is measured.
        warnings: what is done otherwise than asked.
    """

    negotiated: Negotiated
    face_job: FaceJob
    request: ImageRequest
    wish: LikenessWish
    warnings: tuple[WarningBody, ...] = ()

    @classmethod
    def of(
        cls,
        body: GenerationBody,
        negotiated: Negotiated,
        settings: AppSettings,
        *,
        seed: int,
        request_id: str,
        max_priority: Priority,
    ) -> Asked:
        """What a body asks for, with the seed already chosen.

        Args:
            max_priority: the highest that the caller may ask for. More is lowered, not refused: what callers sent
                before there was a limit goes on to draw the same picture.

        Raises:
            FieldsError: this service measures no faces, or draws fewer candidates.
            ImageTooLargeError: the reference picture has more bytes than the settings allow.
        """
        priority = min(body.priority, max_priority, key=PRIORITIES.__getitem__)
        return cls(
            negotiated=negotiated,
            face_job=_face_job(body, settings),
            request=_image_request(body, negotiated, seed=seed, request_id=request_id, priority=priority),
            wish=_wish(body, settings.identity),
            warnings=() if priority == body.priority else (_lowered(body.priority, priority),),
        )


def _lowered(asked: Priority, followed: Priority) -> WarningBody:
    message = f"priority {asked} is not yours to ask for here; the picture was drawn with priority {followed}"
    return WarningBody(code=PRIORITY_LOWERED, message=message)


def _image_request(
    body: GenerationBody, negotiated: Negotiated, *, seed: int, request_id: str, priority: Priority
) -> ImageRequest:
    return ImageRequest(
        request_id=request_id,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        width_px=body.width,
        height_px=body.height,
        num_steps=body.steps,
        cfg=body.cfg,
        guidance=body.guidance,
        seed=seed,
        ip_scale=body.ipadapter_strength,
        scheduler=body.scheduler,
        max_wait_s=body.max_wait_s,
        priority=PRIORITIES[priority],
        # Nobody sees previews in the other forms, so none are made.
        preview_every=body.preview_every if negotiated.form == EVENT_STREAM else 0,
    )


def _wish(body: GenerationBody, settings: IdentitySettings) -> LikenessWish:
    wish = LikenessWish(num_candidates=body.num_candidates, min_similarity=body.min_similarity, is_scored=body.score)
    if not settings.enabled:
        asked = {
            "score": wish.is_scored,
            "num_candidates": wish.num_candidates > 1,
            "min_similarity": wish.min_similarity is not None,
        }
        problem = "needs a service that measures faces, and this one does not; leave it out"
        problems = tuple(FieldProblem(field=name, problem=f"{name} {problem}") for name in asked if asked[name])
        if problems:
            raise FieldsError(problems)
    elif wish.num_candidates > settings.max_candidates:
        problem = f"num_candidates must be at most {settings.max_candidates}, got {wish.num_candidates}"
        raise FieldsError((FieldProblem(field="num_candidates", problem=problem),))
    return wish


def _face_job(body: GenerationBody, settings: AppSettings) -> FaceJob:
    picture, limit = body.reference_image, settings.limits.max_reference_bytes
    if len(picture.data) > limit:
        raise ImageTooLargeError(f"reference_image must have at most {limit} bytes, got {len(picture.data)}")
    return FaceJob(
        data=picture.data,
        media_type=picture.media_type,
        policy=body.face_policy or settings.face.policy,
        provider=body.face_provider,
    )


def encoding(picture: PictureType, settings: PictureSettings) -> PictureEncoding:
    """How the finished picture is written."""
    match picture:
        case "image/png":
            return PictureEncoding(format="png", quality=100)
        case "image/webp":
            return PictureEncoding(format="webp", quality=settings.webp_quality)
        case "image/jpeg":
            return PictureEncoding(format="jpeg", quality=settings.jpeg_quality)


def asked_numbers(body: GenerationBody, negotiated: Negotiated, *, seed: int) -> dict[str, Any]:
    """What was asked for, for the log: not a word of the caller's."""
    asked = body.model_dump(exclude={"prompt", "negative_prompt", "reference_image"})
    return {**asked, "seed": seed, "form": negotiated.form, "num_prompt_chars": len(body.prompt)}
