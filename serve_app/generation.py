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

from engine.errors import DeadlineExceededError
from engine.profile import ModelProfile
from serve_app.access.visit import client_name, max_priority
from serve_app.answers import Drawing, picture_response
from serve_app.asked import Asked, asked_numbers, encoding
from serve_app.body import check_content_type, parse_json_object, read_body
from serve_app.candidates import Candidate, CandidateProgress, LikenessMeter, best_of, draw_candidates, seed_of
from serve_app.contract import RANDOM_SEED, GenerationBody, parse_body
from serve_app.disconnect import ClientGoneError, unless_disconnected
from serve_app.error_answers import describe, is_expected
from serve_app.errors import BodyTimeoutError, TooManyRequestsError
from serve_app.event_stream import answer_with_events
from serve_app.metrics.ingress import IngressMetrics
from serve_app.metrics.table import CANCELLED, CLIENT_GONE_STATUS
from serve_app.negotiation import Negotiated, negotiate, wants_events
from serve_app.request_id import request_id_of
from serve_app.request_log import RequestRecord
from serve_app.room import Room
from serve_app.settings import AppSettings
from serve_app.stages import MIN_WAIT_S, Backend, DrawJob, DrawResult, FaceJob, FaceResult, IdentityJob, OnDrawEvent

logger = logging.getLogger(__name__)

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
        self._room = Room()

    @property
    def settings(self) -> AppSettings:
        """What holds for the next request."""
        return self._settings

    def use(self, settings: AppSettings) -> None:
        """Other limits, prices and qualities, from the next request on."""
        self._settings = settings

    async def respond(self, request: Request, parse: BodyParser = parse_body) -> Response:
        """The answer to one request, whatever happens; only cancellation passes through.

        Args:
            parse: what the JSON object is read by.
        """
        if not wants_events(request.headers.get("accept")):
            return await self._answer(request, parse)
        return await answer_with_events(lambda on_event: self._answer(request, parse, on_event), self._backend.starting)

    async def _answer(self, request: Request, parse: BodyParser, on_event: OnDrawEvent | None = None) -> Response:
        """The answer, counted and logged."""
        record = RequestRecord(
            request_id=request_id_of(request.scope), started_s=self._clock(), client=client_name(request.scope)
        )
        self._room.enter()
        self._metrics.entered()
        try:
            response = await self._within_deadline(request, record, parse, on_event)
            record.outcome, record.status = "ok", response.status_code
        except (asyncio.CancelledError, ClientGoneError) as gone:
            record.outcome, record.status = CANCELLED, CLIENT_GONE_STATUS
            if isinstance(gone, asyncio.CancelledError):
                raise
            response = Response(status_code=CLIENT_GONE_STATUS)
        except Exception as error:
            response = self._failure(error, record)
        finally:
            stay_s = record.stages_s["total"] = self._clock() - record.started_s
            self._room.leave(stay_s if record.outcome == "ok" else None)
            self._metrics.left(outcome=record.outcome, status=record.status)
            record.log()
        return response

    async def _within_deadline(
        self, request: Request, record: RequestRecord, parse: BodyParser, on_event: OnDrawEvent | None
    ) -> Response:
        limits = self._settings.limits
        if self._room.num_in > limits.max_in_flight:
            message = f"{limits.max_in_flight} requests are being worked on; try again shortly"
            raise TooManyRequestsError(message, self._room.retry_after_s)
        allowed_s, of_whom = limits.request_timeout_s, "this service allows"
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            async with asyncio.timeout(allowed_s) as deadline:
                asked = await self._read(request, record, parse)
                if asked.request.max_wait_s is not None and asked.request.max_wait_s < allowed_s:
                    allowed_s, of_whom = asked.request.max_wait_s, "its max_wait_s allows"
                    deadline.reschedule(started_s + allowed_s)
                return await unless_disconnected(request, self._draw(asked, record, on_event))
        except TimeoutError:
            if not deadline.expired():
                raise
            raise DeadlineExceededError(
                f"the picture was not finished within the {allowed_s:g} s that {of_whom}; ask for fewer steps or a "
                "smaller picture, or try again when the service is less busy"
            ) from None

    # -- the road of a request -------------------------------------------------------------------------------------

    async def _read(self, request: Request, record: RequestRecord, parse: BodyParser) -> Asked:
        """What is asked for, with everything checked that can be before anything is spent on it."""
        negotiated = negotiate(request.headers.get("accept"))
        check_content_type(request.headers)
        raw = await self._read_body(request)
        record.num_body_bytes = len(raw)
        body = parse(parse_json_object(raw))
        seed = self._random_seed() if body.seed == RANDOM_SEED else body.seed
        record.asked = asked_numbers(body, negotiated, seed=seed)
        asked = Asked.of(
            body,
            negotiated,
            self._settings,
            seed=seed,
            request_id=record.request_id,
            max_priority=max_priority(request.scope, self._settings.access),
        )
        drawn_size = self._profile.check_request(asked.request)
        record.asked |= {"drawn_width": drawn_size.width_px, "drawn_height": drawn_size.height_px}
        return asked

    async def _read_body(self, request: Request) -> bytes:
        limits = self._settings.limits
        try:
            async with asyncio.timeout(limits.body_timeout_s) as deadline:
                return await read_body(request, max_bytes=limits.max_body_bytes)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise BodyTimeoutError(f"the body did not arrive within {limits.body_timeout_s:g} s") from None

    async def _draw(self, asked: Asked, record: RequestRecord, on_event: OnDrawEvent | None) -> Response:
        face, wish = await self._prepare(asked.face_job, record), asked.wish
        meter = await LikenessMeter.of(self._backend, asked.face_job, wish) if wish.is_measured else None
        progress = None if on_event is None else CandidateProgress(on_event, wish)

        async def draw(index: int) -> Candidate:
            job = self._draw_job(asked, face, record, index)
            listener = None if progress is None else progress.listener(index)
            return await self._candidate(job, asked, meter, record, listener)

        candidates = await draw_candidates(wish, draw)
        best = best_of(candidates, wish, cost_usd=record.cost_usd)
        drawing = Drawing(
            request_id=record.request_id,
            request=asked.request,
            policy=asked.face_job.policy,
            face=face,
            candidates=candidates,
            best=best,
            meter=meter,
            asked_warnings=asked.warnings,
            cost_usd=record.cost_usd,
            elapsed_s=self._clock() - record.started_s,
            model_id=self._profile.name,
            model_title=self._profile.title,
        )
        self._count(drawing, asked.negotiated, record)
        return picture_response(drawing, asked.negotiated)

    async def _candidate(
        self,
        job: DrawJob,
        asked: Asked,
        meter: LikenessMeter | None,
        record: RequestRecord,
        on_event: OnDrawEvent | None,
    ) -> Candidate:
        started_s = self._clock()
        result = await self._backend.draw(job, on_event)
        drawn_s = self._clock()
        self._charge(result, record)
        similarity = None
        if meter is not None:
            similarity = await meter.similarity(IdentityJob(data=result.data, media_type=asked.negotiated.picture))
        return Candidate(
            seed=job.request.seed,
            result=result,
            draw_s=drawn_s - started_s,
            similarity=similarity,
            identity_s=self._clock() - drawn_s,
        )

    async def _prepare(self, job: FaceJob, record: RequestRecord) -> FaceResult:
        face = await self._backend.prepare(job)
        self._metrics.face(face)
        record.stages_s["face"] = face.elapsed_s
        return face

    def _draw_job(self, asked: Asked, face: FaceResult, record: RequestRecord, index: int) -> DrawJob:
        request, max_wait_s = asked.request, asked.request.max_wait_s
        if max_wait_s is not None:  # the engine's clock starts now, the caller's ran all the time
            max_wait_s = max(MIN_WAIT_S, max_wait_s - (self._clock() - record.started_s))
        # Its own id inside the engine: a caller may use the same X-Request-Id twice at once.
        request = dataclasses.replace(
            request,
            request_id=f"{request.request_id}.{secrets.token_hex(4)}",
            reference=face.reference,
            seed=seed_of(request.seed, index),
            max_wait_s=max_wait_s,
            # Of candidates drawn at once, previews of the first are enough to see where it goes.
            preview_every=request.preview_every if index == 0 or not asked.wish.is_at_once else 0,
        )
        return DrawJob(request=request, encoding=encoding(asked.negotiated.picture, self._settings.pictures))

    def _charge(self, result: DrawResult, record: RequestRecord) -> None:
        """Once a picture is drawn it is charged, whatever becomes of the request."""
        cost_usd = self._settings.prices.cost_usd(result.device_name, result.device_s)
        record.cost_usd += cost_usd
        record.device_s += result.device_s
        self._metrics.charged(result, cost_usd=cost_usd)

    def _count(self, drawing: Drawing, negotiated: Negotiated, record: RequestRecord) -> None:
        record.stages_s |= {name: seconds for name, seconds in drawing.timings.items() if name != "total"}
        self._metrics.sent(drawing.request, form=negotiated.form, similarity=drawing.best.similarity)
        for name, seconds in drawing.timings.items():
            self._metrics.stage(name, seconds)

    def _failure(self, error: Exception, record: RequestRecord) -> Response:
        if not is_expected(error):
            logger.error("request %s failed unexpectedly", record.request_id, exc_info=error)
        reply = describe(error, request_id=record.request_id)
        record.outcome, record.status = reply.type_name, reply.status
        return JSONResponse(reply.body, status_code=reply.status, headers=reply.headers)
