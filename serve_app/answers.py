"""A finished drawing as an HTTP answer: the picture with its headers, or everything as JSON."""

from __future__ import annotations

import dataclasses
from typing import Final

from starlette.responses import JSONResponse, Response

from engine.request import ImageRequest
from serve_app import data_url
from serve_app.candidates import Candidate, LikenessMeter
from serve_app.contract_answers import (
    CandidateBody,
    FaceBody,
    FaceBoxBody,
    GenerationAnswer,
    ModelBody,
    TimingsBody,
    WarningBody,
)
from serve_app.negotiation import EVENT_STREAM, Negotiated, PictureType
from serve_app.stages import DrawResult, FacePolicy, FaceResult

FACE_FALLBACK: Final = "face_fallback"
"""Code of the warning that no face was found and the whole picture was taken."""

SEVERAL_FACES: Final = "several_faces"
"""Code of the warning that the largest of several faces was taken."""

NO_SIMILARITY: Final = "no_similarity"
"""Code of the warning that similarity was asked for and there is none, because a face is missing."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """Everything known of one request when its picture is done.

    Attributes:
        request: as it was asked for.
        candidates: every picture that was drawn, one of them the best.
        best: the one that is the answer.
        meter: what they were measured with, where they were.
        asked_warnings: what was done otherwise than asked, known before anything was drawn.
        cost_usd: of all candidates.
        elapsed_s: seconds from the first byte read until now.
    """

    request_id: str
    request: ImageRequest
    policy: FacePolicy
    face: FaceResult
    candidates: tuple[Candidate, ...]
    best: Candidate
    meter: LikenessMeter | None
    asked_warnings: tuple[WarningBody, ...]
    cost_usd: float
    elapsed_s: float
    model_id: str
    model_title: str

    @property
    def result(self) -> DrawResult:
        """The picture that is the answer."""
        return self.best.result

    @property
    def device_s(self) -> float:
        """Seconds of the device for all candidates."""
        return sum(one.result.device_s for one in self.candidates)

    @property
    def timings(self) -> dict[str, float]:
        """Wall-clock seconds by stage, of the picture that is the answer."""
        stages, compress_s = self.result.stages, self.result.compress_s
        in_replica_s = stages.queue_s + stages.encode_s + stages.denoise_s + stages.decode_s + compress_s
        identity = {} if self.meter is None else {"identity": self.meter.reference_s + self.best.identity_s}
        return {
            "face": self.face.elapsed_s,
            "queue": stages.queue_s,
            "encode": stages.encode_s,
            "denoise": stages.denoise_s,
            "decode": stages.decode_s,
            "compress": compress_s,
            "route": max(0.0, self.best.draw_s - in_replica_s),
            **identity,
            "total": self.elapsed_s,
        }

    @property
    def is_upscaled(self) -> bool:
        """Whether the network drew fewer pixels than were asked for."""
        drawn = (self.result.drawn_width_px, self.result.drawn_height_px)
        return drawn != (self.request.width_px, self.request.height_px)

    @property
    def warnings(self) -> list[WarningBody]:
        """What went otherwise than asked."""
        warnings = list(self.asked_warnings)
        if self.face.warning:
            code = FACE_FALLBACK if self.face.box is None else SEVERAL_FACES
            warnings.append(WarningBody(code=code, message=self.face.warning))
        if self.meter is not None and self.best.similarity is None:
            where = "picture that was drawn" if self.meter.has_reference else "reference picture"
            message = f"no face was found in the {where}, so there is no similarity"
            warnings.append(WarningBody(code=NO_SIMILARITY, message=message))
        return warnings


def picture_response(drawing: Drawing, negotiated: Negotiated) -> Response:
    """The answer in the negotiated form; an event stream ends with the one in JSON. The headers are always the same."""
    headers = _headers(drawing)
    if negotiated.form in ("application/json", EVENT_STREAM):
        return JSONResponse(_json(drawing, negotiated.picture).model_dump(mode="json"), headers=headers)
    return Response(drawing.result.data, media_type=negotiated.form, headers=headers)


def _headers(drawing: Drawing) -> dict[str, str]:
    request, result = drawing.request, drawing.result
    headers = {
        "X-Cost-USD": f"{drawing.cost_usd:.6f}",
        "X-Execution-Time-Sec": f"{drawing.elapsed_s:.3f}",
        "X-GPU-Type": _one_line(result.device_name),
        "X-Seed": str(drawing.best.seed),
        "X-Model": _one_line(drawing.model_id),
        "X-Image-Size": f"{request.width_px}x{request.height_px}",
        "X-Drawn-Size": f"{result.drawn_width_px}x{result.drawn_height_px}",
        "Server-Timing": ", ".join(f"{name};dur={1000.0 * s:.1f}" for name, s in drawing.timings.items()),
        "Vary": "Accept",
        "Cache-Control": "no-store",  # somebody's face
    }
    if drawing.meter is not None:
        headers["X-Face-Similarity"] = _shown(drawing.best.similarity)
        headers["X-Candidates"] = ", ".join(f"{one.seed}={_shown(one.similarity)}" for one in drawing.candidates)
    if drawing.warnings:
        headers["X-Warning"] = "; ".join(_one_line(f"{w.code}: {w.message}") for w in drawing.warnings)
    return headers


def _candidates(drawing: Drawing) -> list[CandidateBody] | None:
    if drawing.meter is None:
        return None
    return [CandidateBody(seed=one.seed, similarity=one.similarity) for one in drawing.candidates]


def _shown(similarity: float | None) -> str:
    return "none" if similarity is None else f"{similarity:.4f}"


def _one_line(text: str) -> str:
    """A header's value: printable ASCII on one line."""
    return "".join(char if " " <= char <= "~" else "?" for char in " ".join(text.split()))


def _json(drawing: Drawing, picture: PictureType) -> GenerationAnswer:
    request, result, face = drawing.request, drawing.result, drawing.face
    box = None if face.box is None else FaceBoxBody(**dataclasses.asdict(face.box))
    return GenerationAnswer(
        request_id=drawing.request_id,
        image=data_url.build(data_url.Picture(data=result.data, media_type=picture)),
        width=request.width_px,
        height=request.height_px,
        drawn_width=result.drawn_width_px,
        drawn_height=result.drawn_height_px,
        is_upscaled=drawing.is_upscaled,
        seed=drawing.best.seed,
        model=ModelBody(id=drawing.model_id, title=drawing.model_title),
        face=FaceBody(
            policy=drawing.policy,
            provider=face.provider,
            box=box,
            reference_width_px=face.width_px,
            reference_height_px=face.height_px,
            is_cached=face.is_cached,
        ),
        face_similarity=drawing.best.similarity,
        candidates=_candidates(drawing),
        cost_usd=round(drawing.cost_usd, 9),
        device_s=round(drawing.device_s, 6),
        execution_time_s=round(drawing.elapsed_s, 6),
        gpu_type=result.device_name,
        timings=TimingsBody(**{f"{name}_s": round(seconds, 6) for name, seconds in drawing.timings.items()}),
        warnings=drawing.warnings,
    )
