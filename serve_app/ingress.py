"""The HTTP application: routes and nothing else. Runs under any ASGI server, with any ``serve_app.stages.Backend``.

Imports no torch and no Ray: this process only reads, checks and passes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from engine.profile import SIZE_STEP_PX, ModelProfile
from serve_app import docs_page, openapi, tracing
from serve_app.access import browser
from serve_app.access.gate import KEY_SCHEMES, Gate, open_door
from serve_app.access.limits import Limits
from serve_app.access.metered import MeteredBackend
from serve_app.carried_body import TakeCarriedBody
from serve_app.contract_answers import (
    HealthAnswer,
    LicenceBody,
    LimitsBody,
    ModelCard,
    ModelList,
    ReadyAnswer,
    SizeBody,
    StageBody,
)
from serve_app.error_answers import describe
from serve_app.errors import MethodNotAllowedError, ServeAppError, StageUnavailableError, UnknownPathError
from serve_app.generation import Generator
from serve_app.metrics.ingress import IngressMetrics
from serve_app.metrics.page import CONTENT_TYPE
from serve_app.near_faces import NearFaces
from serve_app.request_id import EchoRequestId, request_id_of
from serve_app.settings import AppSettings
from serve_app.stages import Backend, StageStatus
from serve_app.traced import TracedBackend, TraceRequests
from serve_app.workflow import request_from_graph

GENERATE_PATH = "/flux-ipadapter-faceid"
WORKFLOW_PATH = "/workflow"


def make_app(
    *,
    backend: Backend,
    settings: AppSettings,
    profile: ModelProfile,
    metrics: IngressMetrics,
    echo_request_id: bool = True,
    limits: Limits | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> FastAPI:
    """The application.

    Args:
        backend: the stages behind it.
        settings: limits, defaults and prices.
        profile: the model that is served.
        metrics: where requests are counted.
        echo_request_id: answer with ``X-Request-Id``. Off where a proxy in front already does, as Ray Serve's.
        limits: who counts what clients do, where that is limited; this process alone where None.
        clock: seconds, for how long requests take and how long their callers still wait.

    Raises:
        KeyFileError: the settings name a key file that can't be used.
    """
    door = open_door(settings.access, metrics=metrics, max_visit_s=settings.limits.max_visit_s, limits=limits)
    backend = NearFaces(backend, cache_bytes=settings.face.cache_bytes)
    if tracing.is_on():
        backend = TracedBackend(backend)
    if door.limits is not None:
        backend = MeteredBackend(backend, profile)
    generator = Generator(backend=backend, settings=settings, profile=profile, metrics=metrics, clock=clock)
    app = FastAPI(
        title="Likeness",
        summary="The same person in a new picture.",
        description=openapi.description(profile),
        version=openapi.version(),
        docs_url=None,
        redoc_url=None,
        middleware=[
            *([Middleware(EchoRequestId)] if echo_request_id else []),
            *([Middleware(TraceRequests, paths=(GENERATE_PATH, WORKFLOW_PATH))] if tracing.is_on() else []),
            Middleware(browser.BrowserHeaders),
            *browser.for_other_sites(settings.access.allowed_origins),
            Middleware(Gate, door=door),
            Middleware(TakeCarriedBody),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _unexpected_error},
    )

    app.state.generator = generator  # whose settings can change, see serve_app.app
    _add_pages(app, profile)
    _add_pictures(app, generator, profile, secured=[] if door.keys is None else list(KEY_SCHEMES))
    _add_service(app, backend, generator, metrics, profile)
    return app


def _add_pages(app: FastAPI, profile: ModelProfile) -> None:
    """What people see who come with a browser."""

    @app.get("/", include_in_schema=False)
    async def index() -> dict[str, Any]:
        return {"service": "likeness", "model": profile.name, "generate": f"POST {GENERATE_PATH}", "docs": "/docs"}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        page = docs_page.render(app.openapi())
        return HTMLResponse(page, headers={"Content-Security-Policy": docs_page.CONTENT_SECURITY_POLICY})


def _add_pictures(app: FastAPI, generator: Generator, profile: ModelProfile, *, secured: list[Any]) -> None:
    """What the service is for; ``secured`` are the schemes by which callers show a key."""

    @app.post(GENERATE_PATH, tags=["pictures"], dependencies=secured, **openapi.generation_route(profile))
    async def generate(request: Request) -> Response:
        """Draw the person of the reference picture as the prompt says."""
        return await generator.respond(request)

    @app.post(WORKFLOW_PATH, tags=["pictures"], dependencies=secured, **openapi.workflow_route())
    async def workflow(request: Request) -> Response:
        """The same from the ComfyUI graph (API format) of `workflows/flux-ipadapter-faceid.json`, bare or as `prompt`.

        Prompts, sizes, steps, cfg, seed, scale and provider may be edited, the picture is a data URL. Other nodes,
        inputs, links and settings are refused by their name. Fields of the request that no node has, from `max_wait_s`
        on, may stand beside the nodes.
        """
        return await generator.respond(request, parse=request_from_graph)


def _add_service(
    app: FastAPI, backend: Backend, generator: Generator, metrics: IngressMetrics, profile: ModelProfile
) -> None:
    """What operators and their tools ask."""

    @app.get("/v1/models", tags=["service"])
    async def models() -> ModelList:
        """The model that is served: sizes, limits, licence."""
        return ModelList(data=[_model_card(profile, generator.settings)])

    @app.get("/health", tags=["service"])
    async def health() -> HealthAnswer:
        """Whether this process is alive. Says nothing about the stages behind it; see `/ready`."""
        return HealthAnswer()

    @app.get("/ready", tags=["service"], response_model=ReadyAnswer, responses=openapi.READY_RESPONSES)
    async def ready(request: Request) -> Response:
        """Whether every stage takes requests; and whether a picture can begin at once, or has to wake a stage first."""
        return _readiness(await backend.statuses(), request)

    @app.get("/metrics", tags=["service"], response_class=Response, responses=openapi.METRICS_RESPONSES)
    async def prometheus(request: Request) -> Response:
        """What the whole application counted, all replicas together, in the Prometheus text format."""
        try:
            page = await metrics.page(await backend.statuses())
        except StageUnavailableError as error:
            reply = describe(error, request_id=request_id_of(request.scope))
            return JSONResponse(reply.body, status_code=reply.status, headers=reply.headers)
        return Response(page, headers={"Content-Type": CONTENT_TYPE})


def _readiness(statuses: Sequence[StageStatus], request: Request) -> Response:
    stages = [
        StageBody(name=s.name, is_ready=s.is_ready, is_awake=s.is_awake, reason=s.reason).model_dump() for s in statuses
    ]
    waiting = [f"{s.name} ({s.reason})" for s in statuses if not s.is_ready]
    if not waiting:
        is_awake = all(s.is_awake for s in statuses)
        return JSONResponse({"is_ready": True, "is_awake": is_awake, "stages": stages})
    reply = describe(StageUnavailableError(f"not ready: {', '.join(waiting)}"), request_id=request_id_of(request.scope))
    reply.body["details"]["stages"] = stages
    return JSONResponse(reply.body, status_code=reply.status, headers=reply.headers)


def _model_card(profile: ModelProfile, settings: AppSettings) -> ModelCard:
    size, limits, http, licence = profile.size, profile.limits, settings.limits, profile.licence
    return ModelCard(
        id=profile.name,
        title=profile.title,
        size=SizeBody(
            native_width=size.native_width_px,
            native_height=size.native_height_px,
            draws_at=size.draw,
            multiple_of=SIZE_STEP_PX,
            min_side=size.min_side_px,
            max_side=size.max_side_px,
            max_pixels=size.max_pixels,
        ),
        limits=LimitsBody(
            max_prompt_chars=limits.max_prompt_chars,
            max_steps=limits.max_num_steps,
            max_cfg=limits.max_cfg,
            max_guidance=limits.max_guidance,
            max_candidates=settings.identity.max_candidates if settings.identity.enabled else 0,
            max_body_bytes=http.max_body_bytes,
            max_reference_bytes=http.max_reference_bytes,
            max_reference_pixels=http.max_reference_pixels,
            request_timeout_s=http.request_timeout_s,
        ),
        licence=LicenceBody(
            name=licence.name, url=licence.url, is_commercial_use_allowed=licence.is_commercial_use_allowed
        ),
    )


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses, in the contract's form."""
    assert isinstance(error, HTTPException)
    ours: ServeAppError | HTTPException = error
    if error.status_code == 404:
        ours = UnknownPathError("no such path; GET /docs shows what there is")
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        ours = MethodNotAllowedError(f"this path takes {allowed}, not {request.method}")
    reply = describe(ours, request_id=request_id_of(request.scope))
    return JSONResponse(reply.body, status_code=reply.status, headers={**(error.headers or {}), **reply.headers})


async def _unexpected_error(request: Request, error: Exception) -> Response:
    """A bug of ours: the server behind us logs it, the caller learns nothing of our insides. Outside all middleware."""
    reply = describe(error, request_id=request_id_of(request.scope))
    return JSONResponse(reply.body, status_code=reply.status, headers={**browser.HEADERS, **reply.headers})
