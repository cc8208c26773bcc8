"""The section ``access:`` of the configuration. With its defaults everybody who reaches the port is served."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final

from pydantic import Field, field_validator

from serve_app.stages import Priority
from serve_app.strict import StrictSettings

ALWAYS_OPEN: Final = ("/health", "/ready")
"""Load balancers and Kubernetes have no keys."""

MAY_BE_OPEN: Final = ("/", "/docs", "/openapi.json", "/v1/models", "/metrics")
"""Nothing else can be opened by a setting: no path that draws."""

_Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class ClientLimits(StrictSettings):
    """What one client may do; None is no limit.

    Attributes:
        requests_per_minute: in the long run.
        burst: requests that may come at once after a pause.
        device_s: seconds of a device in any window of ``window_s`` seconds.
        max_concurrent: requests at the same time.
        max_priority: the highest that is followed; more is lowered to it. None: ``high`` for a client with an API key,
            ``normal`` for everybody else, or ``high`` would soon be everybody's word.
    """

    requests_per_minute: _Positive | None = None
    burst: int = Field(default=10, ge=1)
    device_s: _Positive | None = None
    window_s: float = Field(default=3600.0, ge=1.0, le=31 * 86400.0)
    max_concurrent: int | None = Field(default=None, ge=1)
    max_priority: Priority | None = None

    @property
    def are_any(self) -> bool:
        """Whether anything has to be counted."""
        return any(limit is not None for limit in (self.requests_per_minute, self.device_s, self.max_concurrent))


class AccessSettings(StrictSettings):
    """Who may come in.

    Attributes:
        key_file: path of the key file, the same on every machine with an ingress replica, or ``env:NAME`` for the
            file's text in an environment variable. Empty: no keys.
        open_paths: what needs no key and is never limited, besides ``/health`` and ``/ready``.
        limits: of one client, that is, of a name in the key file unless its entry says otherwise; without keys, of
            an address.
        share_limits: one count for all ingress replicas; otherwise each replica counts for itself.
        trusted_proxies: addresses and networks whose ``X-Forwarded-For`` is believed.
        allowed_origins: other sites whose pages may call the service from a browser.
        max_headers, max_header_bytes: of one request; more is answered with 431.
    """

    key_file: str = ""
    open_paths: list[str] = Field(default_factory=lambda: ["/", "/docs", "/openapi.json", "/v1/models"])
    limits: ClientLimits = Field(default_factory=ClientLimits)
    share_limits: bool = True
    trusted_proxies: list[str] = Field(default_factory=list)
    allowed_origins: list[str] = Field(default_factory=list)
    max_headers: int = Field(default=100, ge=16)
    max_header_bytes: int = Field(default=32 * 1024, ge=1024)

    @field_validator("open_paths")
    @classmethod
    def _draw_nothing(cls, paths: list[str]) -> list[str]:
        for path in paths:
            if path not in MAY_BE_OPEN:
                raise ValueError(f"{path!r} can't be open to all; only {', '.join(MAY_BE_OPEN)} can")
        return paths

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, proxies: list[str]) -> list[str]:
        for proxy in proxies:
            if not ipaddress.ip_network(proxy).prefixlen:  # its own message says what is wrong with a malformed one
                raise ValueError(f"{proxy} is every address there is: anybody could claim to be anybody")
        return proxies

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if not re.fullmatch(r"https?://[A-Za-z0-9.\-\[\]:]+", origin):
                raise ValueError(f"{origin!r} is no origin; write it as https://example.org, without a path")
        return origins
