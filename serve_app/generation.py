"""One picture request from its body to its answer: check, prepare the face, draw, answer; and what may go wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.errors import DeadlineExceededError, ImageTooLargeError
from engine.profile import ModelProfile
from engine.request import ImageRequest
from serve_app.answers import Drawing, picture_response
from serve_app.body import check_content_type, parse_json_object, read_body
from serve_app.contract import RANDOM_SEED, GenerationBody, parse_body
from serve_app.disconnect import ClientGoneError, unless_disconnected
from serve_app.errors import (
    BodyTimeoutError,
    TooManyRequestsError,
    describe,
    is_expected,
)
from serve_app.metrics import IngressMetrics
from serve_app.negotiation import AnswerForm, choose
from serve_app.request_id import request_id_of
from serve_app.request_log import RequestRecord
from serve_app.settings import AppSettings
from serve_app.stages import Backend, DrawJob, FaceJob, FacePolicy, PictureEncoding

logger = logging.getLogger(__name__)

CLIENT_GONE_STATUS: Final = 499
"""nginx's, for logs and metrics; nobody receives it."""

MAX_RANDOM_SEED: Final = 2**32
"""Random seeds stay below this, so that they survive JSON readers that keep numbers as doubles."""


BodyParser = Callable[[Mapping[str, Any]], GenerationBody]
"""From a JSON object to a checked request: the contract's own form, or a workflow graph."""


class Generator:
    """Answers picture requests, each with exactly one response, one log line and one count."""

    def __init__(
        self,
        *,
        backend: Backend,
        settings: AppSettings,
        profile: ModelProfile,
        metrics: IngressMetrics,
        clock: Callable[[], float] = time.perf_counter,
        random_seed: Callable[[], int] = lambda: secrets.randbelow(MAX_RANDOM_SEED),
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._profile = profile
        self._metrics = metrics
        self._clock = clock
        self._random_seed = random_seed
        self._num_in_flight = 0

    async def respond(self, request: Request, parse: BodyParser = parse_body) -> Response:
        """The answer to one request, whatever happens; only cancellation passes through.

        Args:
            parse: what the JSON object is read by.
        """
        record = RequestRecord(request_id=request_id_of(request.scope), started_s=self._clock())
        self._num_in_flight += 1
        self._metrics.entered()
        try:
            response = await self._within_deadline(request, record, parse)
            record.outcome, record.status = "ok", response.status_code
        except (asyncio.CancelledError, ClientGoneError) as gone:
            record.outcome, record.status = "cancelled", CLIENT_GONE_STATUS
            if isinstance(gone, asyncio.CancelledError):
                raise
            response = Response(status_code=CLIENT_GONE_STATUS)
        except Exception as error:
            response = self._failure(error, record)
        finally:
            self._num_in_flight -= 1
            record.stages_s["total"] = self._clock() - record.started_s
            self._metrics.left(outcome=record.outcome, status=record.status)
            record.log()
        return response

    async def _within_deadline(self, request: Request, record: RequestRecord, parse: BodyParser) -> Response:
        limits = self._settings.limits
        if self._num_in_flight > limits.max_in_flight:
            raise TooManyRequestsError(f"{limits.max_in_flight} requests are being worked on; try again shortly")
        try:
            async with asyncio.timeout(limits.request_timeout_s) as deadline:
                return await self._read_and_draw(request, record, parse)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise DeadlineExceededError(
                f"the picture was not finished within {limits.request_timeout_s:g} s; ask for fewer steps or a "
                "smaller picture, or try again when the service is less busy"
            ) from None

    async def _read_and_draw(self, request: Request, record: RequestRecord, parse: BodyParser) -> Response:
        form = choose(request.headers.get("accept"))
        check_content_type(request.headers)
        raw = await self._read(request)
        record.num_body_bytes = len(raw)
        body = parse(parse_json_object(raw))
        del raw
        seed = self._random_seed() if body.seed == RANDOM_SEED else body.seed
        record.asked = _numbers(body, seed, form)
        image_request = _image_request(body, seed=seed, request_id=record.request_id)
        drawn_size = self._profile.check_request(image_request)  # before anything is spent on it
        record.asked |= {"drawn_width": drawn_size.width_px, "drawn_height": drawn_size.height_px}
        job = self._face_job(body)
        return await unless_disconnected(request, self._draw(job, image_request, form, record))

    async def _read(self, request: Request) -> bytes:
        limits = self._settings.limits
        try:
            async with asyncio.timeout(limits.body_timeout_s) as deadline:
                return await read_body(request, max_bytes=limits.max_body_bytes)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise BodyTimeoutError(f"the body did not arrive within {limits.body_timeout_s:g} s") from None

    def _face_job(self, body: GenerationBody) -> FaceJob:
        picture, limit = body.reference_image, self._settings.limits.max_reference_bytes
        if len(picture.data) > limit:
            raise ImageTooLargeError(f"reference_image must have at most {limit} bytes, got {len(picture.data)}")
        policy: FacePolicy = body.face_policy or self._settings.face.policy
        return FaceJob(data=picture.data, media_type=picture.media_type, policy=policy, provider=body.face_provider)

    async def _draw(self, job: FaceJob, asked: ImageRequest, form: AnswerForm, record: RequestRecord) -> Response:
        face = await self._backend.prepare(job)
        self._metrics.face(face)
        record.stages_s["face"] = face.elapsed_s
        # Its own id inside the engine: a caller may use the same X-Request-Id twice at once.
        engine_id = f"{asked.request_id}.{secrets.token_hex(4)}"
        request = dataclasses.replace(asked, request_id=engine_id, reference=face.reference)
        result = await self._backend.draw(DrawJob(request=request, encoding=self._encoding(form)))
        cost_usd = self._settings.prices.cost_usd(result.device_name, result.device_s)
        drawing = Drawing(
            request_id=record.request_id,
            request=asked,
            policy=job.policy,
            face=face,
            result=result,
            cost_usd=cost_usd,
            elapsed_s=self._clock() - record.started_s,
            model_id=self._profile.name,
            model_title=self._profile.title,
        )
        record.cost_usd, record.device_s = cost_usd, result.device_s
        record.stages_s |= {name: seconds for name, seconds in drawing.timings.items() if name != "total"}
        self._metrics.drawn(result, cost_usd=cost_usd, num_pixels=asked.width_px * asked.height_px, form=form)
        for name, seconds in drawing.timings.items():
            self._metrics.stage(name, seconds)
        return picture_response(drawing, form)

    def _encoding(self, form: AnswerForm) -> PictureEncoding:
        pictures = self._settings.pictures
        match form:
            case "image/png":
                return PictureEncoding(format="png", quality=100)
            case "image/webp":
                return PictureEncoding(format="webp", quality=pictures.webp_quality)
            case "image/jpeg" | "application/json":
                return PictureEncoding(format="jpeg", quality=pictures.jpeg_quality)

    def _failure(self, error: Exception, record: RequestRecord) -> Response:
        if not is_expected(error):
            logger.error("request %s failed unexpectedly", record.request_id, exc_info=error)
        reply = describe(error, request_id=record.request_id)
        record.outcome, record.status = reply.type_name, reply.status
        return JSONResponse(reply.body, status_code=reply.status, headers=reply.headers)


def _image_request(body: GenerationBody, *, seed: int, request_id: str) -> ImageRequest:
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
    )


def _numbers(body: GenerationBody, seed: int, form: AnswerForm) -> dict[str, Any]:
    """What was asked for, without a word of the caller's."""
    numbers = body.model_dump(exclude={"prompt", "negative_prompt", "reference_image"})
    return {**numbers, "seed": seed, "form": form, "num_prompt_chars": len(body.prompt)}
