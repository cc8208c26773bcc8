"""``deploy/nginx.conf`` agrees with the settings that it stands before."""

from __future__ import annotations

import re
from pathlib import Path

from serve_app.access.settings import AccessSettings
from serve_app.settings import LimitSettings

CONF = (Path(__file__).parent.parent / "deploy" / "nginx.conf").read_text(encoding="utf-8")


def directive(name: str) -> str:
    """The value of the only directive of this name."""
    (value,) = re.findall(rf"^\s*{name} ([^;]+);", CONF, flags=re.MULTILINE)
    return str(value)


def test_bodies_and_headers_have_the_same_bounds() -> None:
    assert directive("client_max_body_size") == f"{LimitSettings().max_body_bytes // 2**20}m"
    num, size = directive("large_client_header_buffers").split()
    assert int(num) * int(size.removesuffix("k")) * 1024 == AccessSettings().max_header_bytes


def test_the_service_ends_a_request_before_nginx_does() -> None:
    assert int(directive("proxy_read_timeout").removesuffix("s")) > LimitSettings().request_timeout_s


def test_what_rays_proxy_would_obey_is_removed_and_events_are_not_held_back() -> None:
    for name in ("X-Request-Timeout-Seconds", "X-Request-Disconnect-Disabled"):
        assert f'proxy_set_header {name} "";' in CONF
    assert directive("proxy_buffering") == "off"
    assert directive("access_log") == "off"
