"""The one table of everything the application counts. Dashboards, rules and documentation take their names from here.

Seconds, dollars, tokens and pictures are counters, so that rates and averages over any window are exact. No label holds
anything a caller wrote: every value is listed here, or is the name of a device or a replica.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, get_args

from serve_app.error_answers import ANSWERS, INTERNAL_ANSWER, INTERNAL_ERROR_TYPE
from serve_app.metrics.metric import Metric, closed, open_
from serve_app.scaling.decision import Cause
from serve_app.stages import DEPLOYMENTS, FACE_STAGE, FLUX_REPLICA, IDENTITY_STAGE, OPTIONAL_DEPLOYMENTS

CANCELLED: Final = "cancelled"
CLIENT_GONE_STATUS: Final = 499
"""nginx's, for logs and metrics; nobody receives it."""

_WALL_S: Final = (
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1,
    1.5,
    2,
    3,
    4,
    5,
    6,
    8,
    10,
    12,
    16,
    20,
    30,
    45,
    60,
    90,
    180,
    300,
)
"""From a cached face to the request time limit; dense where a picture's time is decided."""

_LOAD_S: Final = (0.1, 0.3, 1, 2, 5, 10, 20, 30, 45, 60, 90, 120, 180, 240, 300, 450, 600, 900)
"""From a fake engine to a full-size model on a cold disk."""

_SCORE: Final = tuple(round(0.05 * i, 2) for i in range(20))
"""Similarities from 0, which stands for everything below as well, to 0.95."""

_LOAD_STAGES: Final = ("transformer", "adapter", "t5", "clip", "clip_vision", "autoencoder", "warm_up")
"""Files' roles in :mod:`engine.profile`, in whose names an engine says what it loaded; and what comes after."""


def outcome_of(reason: str, status: int) -> tuple[str, str, str]:
    """Outcome, reason and status of a finished request, as labels."""
    if reason == "ok":
        return "ok", "none", str(status)
    if reason == CANCELLED:
        return CANCELLED, "client_gone", str(status)
    return ("refused" if status < 500 else "failed"), reason, str(status)


def _ends() -> Iterator[tuple[str, str, str]]:
    yield outcome_of("ok", 200)
    yield outcome_of(CANCELLED, CLIENT_GONE_STATUS)
    yield outcome_of(INTERNAL_ERROR_TYPE, INTERNAL_ANSWER.status)
    for error, answer in ANSWERS.items():
        yield outcome_of(answer.type_name or error.__name__, answer.status)


# -- requests: counted by the ingress, once each ----------------------------------------------------------------------

RECEIVED = closed("requests_received", "counter", "Picture requests that came in.")
REQUESTS = Metric(
    name="requests",
    kind="counter",
    text="Picture requests that ended. Refused is the caller's doing or a full house (4xx), failed is ours (5xx).",
    labels=("outcome", "reason", "status"),
    series=frozenset(_ends()),
)
IN_FLIGHT = closed("in_flight", "gauge", "Picture requests being worked on.")
STAGE_SECONDS = closed(
    "stage_seconds",
    "histogram",
    "Wall-clock seconds of pictures by stage; encode is text and vision, total is from the first byte to the answer.",
    buckets=_WALL_S,
    stage=("face", "queue", "text", "vision", "encode", "denoise", "decode", "compress", "route", "identity", "total"),
)
COST_USD = closed("cost_usd", "counter", "US dollars that pictures were charged.")
CHARGED_SECONDS = closed("device_seconds_charged", "counter", "Device seconds that pictures were charged.")
IMAGES = closed(
    "images",
    "counter",
    "Pictures sent, by form.",
    form=("image/jpeg", "image/png", "image/webp", "application/json", "text/event-stream"),
)
PIXELS = closed("image_pixels", "counter", "Pixels of the pictures sent, at the requested size.")
STEPS_SENT = closed("image_steps", "counter", "Sampler steps of the pictures sent.")
FACES = closed(
    "faces",
    "counter",
    "Prepared references: a face found, none and the whole picture taken, or the whole picture as asked.",
    result=("found", "fallback", "whole"),
    cached=("true", "false"),
)
REPLAYS = closed(
    "replays",
    "counter",
    "Requests run again after a stage died under them.",
    stage=(FACE_STAGE, FLUX_REPLICA, IDENTITY_STAGE),
)
IDENTITY_SCORE = closed(
    "identity_score", "histogram", "Similarity of the picture's face to the reference's.", buckets=_SCORE
)
STAGE_READY = open_("stage_ready", "gauge", "Whether a stage of this application can serve, as /ready says.", "stage")

# -- clients: counted by the ingress's door ----------------------------------------------------------------------------

MAX_CLIENTS: Final = 1000
"""Names of clients are the operator's, in the key file, which takes no more of them."""

TURNED_AWAY = closed(
    "turned_away",
    "counter",
    "Requests refused at the door, before they were read.",
    reason=("headers", "key", "disabled_key", "rate", "quota", "concurrency"),
)
CLIENT_REQUESTS = open_(
    "client_requests",
    "counter",
    "Requests of clients with API keys; cancelled ones got no answer.",
    "client",
    "outcome",
    max_open=4 * MAX_CLIENTS,
)
CLIENT_SECONDS = open_(
    "client_device_seconds", "counter", "Device seconds that clients were charged.", "client", max_open=MAX_CLIENTS
)
LIMITS_LOST = closed("limits_lost", "counter", "Times the limits shared by all ingress replicas were out of reach.")

# -- engines: counted by every Flux replica ---------------------------------------------------------------------------

ENGINE_ENDED = closed(
    "engine_requests",
    "counter",
    "Requests that engines ended: cancelled ones had no caller any more, refused ones were never taken in.",
    outcome=("finished", "failed", "cancelled", "expired", "refused"),
)
ENGINE_STEPS = closed("engine_steps", "counter", "Forward passes of a whole batch.")
ENGINE_SAMPLE_STEPS = closed("engine_sample_steps", "counter", "Steps summed over the requests of every batch.")
ENGINE_WASTED_STEPS = closed(
    "engine_wasted_steps", "counter", "Those of them that requests without a picture took: cancelled, expired, failed."
)
ENGINE_TOKENS = closed("engine_step_tokens", "counter", "Tokens, image and text, summed over the steps.")
ENGINE_TOKEN_ROOM = closed("engine_step_token_room", "counter", "Tokens that would have fitted into the steps.")
CACHE_LOOKUPS = closed(
    "engine_cache_lookups",
    "counter",
    "Prompts and references looked up before they are encoded.",
    cache=("text", "image"),
    result=("hit", "miss"),
)
CACHE_BYTES = closed("engine_cache_bytes", "gauge", "What the caches hold.", cache=("text", "image"))
COST_MODEL_ERROR = open_(
    "cost_model_error_ratio",
    "gauge",
    "Median over a replica's last steps of how far their prediction was off: 0.1 is 10 %.",
    "replica",
)
BATCH_SIZE = closed(
    "engine_batch_requests", "histogram", "Requests in a step.", buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
)
ENGINE_WAITING = closed("engine_waiting_requests", "gauge", "Requests in engines that have not begun.")
ENGINE_RUNNING = closed("engine_running_requests", "gauge", "Requests in engines that have begun.")
QUEUED_SECONDS = closed("engine_queued_device_seconds", "gauge", "Predicted device seconds of the work in engines.")
DEVICE_SECONDS = open_(
    "device_seconds", "counter", "Seconds the devices were busy, whoever for, by what they did.", "device", "stage"
)

# -- replicas ---------------------------------------------------------------------------------------------------------

_DEPLOYMENTS: Final = (*DEPLOYMENTS, *OPTIONAL_DEPLOYMENTS)

REPLICAS = closed(
    "replicas", "gauge", "Replicas that report, by state.", deployment=_DEPLOYMENTS, state=("starting", "ready")
)
COLD_START_SECONDS = Metric(
    name="cold_start_seconds",
    kind="histogram",
    text="Seconds from a replica's constructor until it could serve, and what they went into.",
    labels=("deployment", "stage"),
    series=frozenset({*((name, "total") for name in _DEPLOYMENTS), *((FLUX_REPLICA, stage) for stage in _LOAD_STAGES)}),
    buckets=_LOAD_S,
)

DEVICE_LABELS: Final = ("device", "replica")
MEMORY_USED = open_("device_memory_used_bytes", "gauge", "Device memory that a replica holds.", *DEVICE_LABELS)
MEMORY_PEAK = open_("device_memory_peak_bytes", "gauge", "Most device memory that a replica ever held.", *DEVICE_LABELS)
MEMORY_TOTAL = open_("device_memory_total_bytes", "gauge", "Memory of a replica's device.", *DEVICE_LABELS)
TEMPERATURE = open_("device_temperature_celsius", "gauge", "Temperature of a replica's device.", *DEVICE_LABELS)
UTILISATION = open_("device_utilisation_ratio", "gauge", "Share of time a kernel ran, 0 to 1.", *DEVICE_LABELS)
POWER = open_("device_power_watts", "gauge", "Power a replica's device draws.", *DEVICE_LABELS)

# -- scaling: counted by Serve's controller, which asks the policy -----------------------------------------------------

SCALED: Final = (FACE_STAGE, FLUX_REPLICA, IDENTITY_STAGE)
WANTED = closed("scaling_wanted_replicas", "gauge", "Replicas that the policy wants.", deployment=SCALED)
OWED_SECONDS = closed(
    "scaling_owed_seconds", "gauge", "Work that waits and runs, in seconds of one replica.", deployment=SCALED
)
ARRIVING = closed(
    "scaling_arriving_ratio", "gauge", "Work that arrives, in seconds of one replica a second.", deployment=SCALED
)
DECISIONS = closed(
    "scaling_decisions",
    "counter",
    "Times the policy wanted another number of replicas, by what decided.",
    deployment=SCALED,
    cause=get_args(Cause),
    direction=("up", "down"),
)

TABLE: Final[dict[str, Metric]] = {row.name: row for row in list(globals().values()) if isinstance(row, Metric)}
"""Every metric by its name, in the order above."""
