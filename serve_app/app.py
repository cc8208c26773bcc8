"""The application as Ray Serve deploys it: ``import_path: serve_app.app:build`` with :class:`AppSettings` as ``args:``.

Imports no torch: the ingress and Ray's own processes import this module.
"""

# No `from __future__ import annotations` here: Serve looks at the annotation of build()'s argument itself, and a string
# in its place makes it hand over the bare dictionary, unchecked.

import functools
import logging
from collections.abc import Callable
from typing import Any, Final

import ray
from fastapi import FastAPI
from pydantic import ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from serve_app.access.shared import SharedLimits, shared_limits
from serve_app.face_stage import FaceStage, open_tools
from serve_app.flux_replica import FluxReplica, leave_soon, open_engine
from serve_app.identity_stage import IdentityStage, open_model, picture_limits
from serve_app.ingress import make_app
from serve_app.live_settings import LiveSettings
from serve_app.metrics.ingress import IngressMetrics
from serve_app.metrics.ray_ledger import RayLedger, open_recorder
from serve_app.metrics.replica import ReplicaStart
from serve_app.observed import observe, observed
from serve_app.ray_backend import RayBackend
from serve_app.scaling.live import publish
from serve_app.settings import AppSettings
from serve_app.shared_turn import SharedTurn
from serve_app.stages import FACE_STAGE, FLUX_REPLICA, IDENTITY_STAGE, INGRESS

logger = logging.getLogger(__name__)

SHUTDOWN_MARGIN_S: Final = 30.0
"""A replica that is taken away may finish its longest request, and then some."""

INGRESS_ROOM: Final = 64
"""Calls an ingress replica takes beyond ``limits.max_in_flight``: for refusals, ``/health`` and ``/metrics``."""


class Ingress:
    """The HTTP application in a replica of its own."""

    def __init__(
        self,
        settings: AppSettings,
        face_stage: DeploymentHandle,
        flux_replica: DeploymentHandle,
        identity_stage: DeploymentHandle | None,
    ) -> None:
        context = serve.get_replica_context()
        observe(INGRESS, settings.tracing, replica=context.replica_id.unique_id)
        self._args = self._settings = settings
        self._app: FastAPI | None = None
        self._recorder = open_recorder()
        self._start = ReplicaStart(self._recorder, INGRESS)
        self._metrics = IngressMetrics(self._recorder, RayLedger(context.app_name).exchange)
        self._backend = RayBackend(
            face_stage=face_stage,
            flux_replica=flux_replica,
            identity_stage=identity_stage,
            app_name=context.app_name,
            on_replay=self._metrics.replayed,
            turn=SharedTurn(context.app_name, owner=ray.get_runtime_context().get_actor_id() or ""),
        )
        self._limits = self._shared_limits(context.app_name)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once, after the constructor."""
        self._app = make_app(
            backend=self._backend,
            settings=self._settings,
            profile=self._settings.load_profile(),
            metrics=self._metrics,
            echo_request_id=False,  # Serve's proxy does
            limits=self._limits,
        )
        self._start.done()
        return self._app

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve at the start and whenever ``user_config`` changes: see :mod:`serve_app.live_settings`.

        What can't be used is logged and changes nothing. Were it raised, Serve would replace the replica, and all
        others, by ones that end in the same way.
        """
        try:
            live = LiveSettings.model_validate(user_config)
            self._settings = live.over(self._args)
        except ValidationError:
            logger.exception("user_config can't be used; the settings stay as they are. Run likeness check-config")
            return
        publish(serve.get_replica_context().app_name, live.scaling)
        if self._app is not None:
            self._app.state.generator.use(self._settings)

    def check_health(self) -> None:
        """Asked by Serve every few seconds: to answer is enough."""
        if self._limits is not None:
            self._limits.keep()

    def _shared_limits(self, app_name: str) -> SharedLimits | None:
        access, limits = self._settings.access, self._settings.limits
        if not access.share_limits or not (access.key_file or access.limits.are_any):
            return None
        return shared_limits(app_name, max_visit_s=limits.max_visit_s, on_lost=self._metrics.limits_lost)

    def __del__(self) -> None:
        self._recorder.close()


def build(args: AppSettings) -> Application:
    """Compose the three deployments, and a fourth where identity is enabled.

    What is said here of replicas and resources, ``deployments:`` may override.

    Raises:
        ModelLoadError: no such profile. Better here, where the application that runs goes on, than in its replicas.
    """
    profile = args.load_profile()
    shutdown_s = args.limits.request_timeout_s + SHUTDOWN_MARGIN_S
    names = {"profile_name": args.profile, "model_dir": args.model_dir}

    def in_its_process(stage: str, open_: Callable[[], Any]) -> Callable[[], Any]:
        return functools.partial(observed, stage, args.tracing, open_)

    common: dict[str, Any] = {"graceful_shutdown_timeout_s": shutdown_s, "health_check_period_s": 5.0}

    face_stage = serve.deployment(
        FaceStage, name=FACE_STAGE, max_ongoing_requests=4, ray_actor_options={"num_cpus": 1}, **common
    ).bind(
        in_its_process(FACE_STAGE, functools.partial(open_tools, **names, settings=args.face, limits=args.limits)),
        cache_bytes=args.face.cache_bytes,
        open_recorder=open_recorder,
    )
    flux_replica = serve.deployment(
        FluxReplica,
        name=FLUX_REPLICA,
        # All that wait should wait in the engine: its scheduler chooses among those it sees.
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(args.engine.device == "cuda")},
        **common,
    ).bind(
        in_its_process(FLUX_REPLICA, functools.partial(open_engine, **names, settings=args.engine)),
        open_recorder,
        leave=leave_soon,
    )
    identity_stage = None
    if args.identity.enabled:
        identity_stage = serve.deployment(
            IdentityStage, name=IDENTITY_STAGE, max_ongoing_requests=4, ray_actor_options={"num_cpus": 1}, **common
        ).bind(
            in_its_process(IDENTITY_STAGE, functools.partial(open_model, min_confidence=args.face.min_confidence)),
            limits=picture_limits(args.limits, profile),
            cache_bytes=args.identity.cache_bytes,
            open_recorder=open_recorder,
        )
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name=INGRESS,
        max_ongoing_requests=args.limits.max_in_flight + INGRESS_ROOM,
        ray_actor_options={"num_cpus": 1},
        **common,
    )
    return ingress.bind(args, face_stage, flux_replica, identity_stage)
