"""The door of the real application, in process: who comes in, how often, and what everybody is told."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.access import browser
from serve_app.access.keys import digest_of, new_key
from tests.asgi import URL, Service, body, until, with_service

STUDIO, OLD = new_key(), new_key()
KEY_FILE = f"""
[[client]]
name = "studio"
keys = [{{ sha256 = "{digest_of(STUDIO).hex()}" }}, {{ sha256 = "{digest_of(OLD).hex()}", disabled = true }}]
"""
BEARER = {"Authorization": f"Bearer {STUDIO}"}
GUARDED = ("/metrics", "/nowhere", "/health/", "/health//", "/Health", "/docs/x")
OPEN = ("/", "/docs", "/openapi.json", "/v1/models", "/health", "/ready")


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    """The path of a file with one client, who has one key that counts."""
    path = tmp_path / "keys.toml"
    path.write_text(KEY_FILE)
    path.chmod(0o640)
    return str(path)


async def metric(service: Service, name: str, **labels: str) -> float:
    """One sample of the metrics; 0 where there is none."""
    page = (await service.metrics.page(())).decode()
    named = ",".join(f'{key}="{value}"' for key, value in labels.items())
    found = re.search(rf"^{name}{{{named}}} (\S+)$", page, flags=re.MULTILINE)
    return float(found[1]) if found else 0.0


def check_refusal(response: httpx.Response, status: int, type_name: str) -> None:
    """It has the contract's form."""
    answer = response.json()
    assert (response.status_code, answer["type"]) == (status, type_name), answer
    assert answer.keys() == {"error", "type", "details"}
    assert answer["details"]["request_id"] == response.headers["x-request-id"]
    assert ("retry-after" in response.headers) == (status == 429)


def test_without_settings_everybody_is_served_and_nothing_is_asked() -> None:
    async def test(service: Service) -> None:
        assert (await service.draw()).status_code == 200
        assert (await service.client.get("/metrics")).status_code == 200
        for _ in range(30):
            assert (await service.client.get("/v1/models")).status_code == 200

    with_service(test)


def test_with_keys_everything_that_is_not_open_needs_one(key_file: str) -> None:
    async def test(service: Service) -> None:
        for path in OPEN:
            assert (await service.client.get(path)).status_code == 200, path
        for path in GUARDED:
            check_refusal(await service.client.get(path), 401, "KeyRequiredError")
        for path in (URL, "/workflow"):
            refused = await service.client.post(path, content=b"whatever")
            check_refusal(refused, 401, "KeyRequiredError")
            assert refused.headers["www-authenticate"] == 'Bearer realm="likeness"'
        wrong = await service.draw(headers={"X-API-Key": "likeness_wrong"})
        check_refusal(wrong, 401, "KeyRequiredError")
        assert wrong.headers["www-authenticate"] == 'Bearer realm="likeness", error="invalid_token"'
        check_refusal(await service.draw(headers={"X-API-Key": OLD}), 403, "KeyDisabledError")
        assert not service.stages.prepared
        assert (await service.draw(headers=BEARER)).status_code == 200
        assert (await service.draw(headers={"X-API-Key": STUDIO})).status_code == 200
        assert (await service.client.get("/metrics", headers=BEARER)).status_code == 200
        assert (await service.client.get("/nowhere", headers=BEARER)).status_code == 404

    with_service(test, access={"key_file": key_file})


def test_what_is_open_is_a_setting(key_file: str) -> None:
    async def test(service: Service) -> None:
        assert (await service.client.get("/metrics")).status_code == 200
        assert (await service.client.get("/v1/models")).status_code == 401
        assert (await service.client.get("/ready")).status_code == 200

    with_service(test, access={"key_file": key_file, "open_paths": ["/metrics"]})


def test_no_byte_of_a_body_is_read_without_a_key(key_file: str) -> None:
    async def test(service: Service) -> None:
        async def receive() -> dict[str, Any]:
            raise AssertionError("nobody may ask for the body")

        statuses = []

        async def send(message: MutableMapping[str, Any]) -> None:
            statuses.append(message.get("status"))

        headers = [(b"content-type", b"application/json"), (b"content-length", b"29000000")]
        scope = {"type": "http", "method": "POST", "path": URL, "query_string": b"", "headers": headers}
        await service.app(scope, receive, send)
        assert statuses[0] == 401

    with_service(test, access={"key_file": key_file})


def test_names_of_clients_are_counted_and_logged_and_keys_nowhere(
    key_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def test(service: Service) -> None:
        await service.draw(headers=BEARER)
        await service.draw(headers=BEARER, width=1000)
        await service.draw(headers={"X-API-Key": OLD})
        await service.draw()
        lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "serve_app.request"]
        assert [(line["client"], line["outcome"]) for line in lines] == [
            ("studio", "ok"),
            ("studio", "InvalidRequestError"),
            ("", "KeyDisabledError"),
            ("", "KeyRequiredError"),
        ]
        assert await metric(service, "likeness_client_requests_total", client="studio", outcome="ok") == 1
        assert await metric(service, "likeness_client_requests_total", client="studio", outcome="refused") == 1
        assert await metric(service, "likeness_client_device_seconds_total", client="studio") > 0.0
        assert await metric(service, "likeness_turned_away_total", reason="key") == 1
        assert await metric(service, "likeness_turned_away_total", reason="disabled_key") == 1
        for told in (caplog.text, (await service.metrics.page(())).decode()):
            for secret in (STUDIO, OLD, digest_of(STUDIO).hex(), "Bearer"):
                assert secret not in told

    with_service(test, access={"key_file": key_file})


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({f"x-{n}": "1" for n in range(120)}, "headers; at most 100 are read"),
        ({"x-long": "y" * 40_000}, "bytes; at most 32768 are read"),
    ],
)
def test_more_headers_than_anybody_needs_are_refused(headers: dict[str, str], says: str) -> None:
    async def test(service: Service) -> None:
        for response in (await service.draw(headers=headers), await service.client.get("/health", headers=headers)):
            check_refusal(response, 431, "HeadersTooLargeError")
            assert says in response.json()["error"]
        assert await metric(service, "likeness_turned_away_total", reason="headers") == 2

    with_service(test)


def test_a_client_is_told_when_to_come_back(key_file: str) -> None:
    async def test(service: Service) -> None:
        for _ in range(2):
            assert (await service.draw(headers=BEARER)).status_code == 200
        refused = await service.draw(headers=BEARER)
        check_refusal(refused, 429, "LimitReachedError")
        assert "30 requests a minute" in refused.json()["error"]
        assert refused.headers["retry-after"] in ("1", "2")
        assert refused.json()["details"]["retry_after_s"] <= 2.0
        assert await metric(service, "likeness_turned_away_total", reason="rate") == 1
        assert (await service.client.get("/ready")).status_code == 200, "never limited"
        assert (await service.client.get("/v1/models")).status_code == 200

    with_service(test, access={"key_file": key_file, "limits": {"requests_per_minute": 30.0, "burst": 2}})


def test_one_client_can_not_take_all_the_room() -> None:
    async def test(service: Service) -> None:
        peers = [httpx.ASGITransport(app=service.app, client=(f"10.0.0.{n}", 1234)) for n in (1, 2)]
        first, second = (httpx.AsyncClient(transport=peer, base_url="http://likeness") for peer in peers)
        drawing = [asyncio.create_task(first.post(URL, json=body(steps=100, seed=n))) for n in range(5)]
        await until(lambda: sum(task.done() for task in drawing) == 3)
        assert (await second.post(URL, json=body())).status_code == 200, "others are served"
        answers = await asyncio.gather(*drawing)
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
        refused = next(answer for answer in answers if answer.status_code == 429)
        check_refusal(refused, 429, "LimitReachedError")
        assert (await first.post(URL, json=body())).status_code == 200, "and the same one again"
        assert b"10.0.0" not in await service.metrics.page(())

    with_service(test, access={"limits": {"max_concurrent": 2}})


def test_clients_behind_a_trusted_proxy_are_told_apart() -> None:
    async def test(service: Service) -> None:
        async def ask(forwarded: str) -> int:
            return (await service.draw(headers={"X-Forwarded-For": forwarded})).status_code

        assert [await ask("1.1.1.1"), await ask("1.1.1.1"), await ask("2.2.2.2")] == [200, 429, 200]
        assert await ask("3.3.3.3, 1.1.1.1") == 429, "what it writes itself does not help"

    limits = {"requests_per_minute": 1.0, "burst": 1}
    with_service(test, access={"limits": limits, "trusted_proxies": ["127.0.0.1"]})  # httpx says it comes from there


QUOTA = {"limits": {"device_s": 1.0, "window_s": 3600.0}}
"""A step of the fake engine takes 10 ms."""
ENGINE = {"kind": "fake", "step_s": 0.01, "device_name": "NVIDIA L40S"}


def test_device_seconds_are_charged_and_run_out(key_file: str) -> None:
    async def test(service: Service) -> None:
        spent_s = 0.0
        for _ in range(3):
            response = await service.draw(headers={**BEARER, "Accept": "application/json"}, steps=30)
            assert response.status_code == 200
            spent_s += response.json()["device_s"]
        refused = await service.draw(headers=BEARER, steps=30)
        check_refusal(refused, 429, "LimitReachedError")
        assert "1 s of a device in 3600 s" in refused.json()["error"]
        assert 3590 < int(refused.headers["retry-after"]) <= 3600
        assert await metric(service, "likeness_turned_away_total", reason="quota") == 1
        assert await metric(service, "likeness_client_device_seconds_total", client="studio") == pytest.approx(spent_s)
        assert (await service.draw(headers=BEARER, steps=2)).status_code == 200, "a smaller one still fits"

    with_service(test, access={"key_file": key_file, **QUOTA}, engine=ENGINE)


def test_requests_at_the_same_time_can_not_overshoot_together() -> None:
    async def test(service: Service) -> None:
        assert (await service.draw(steps=10)).status_code == 200  # from now on it is known what a step takes
        answers = await asyncio.gather(*(service.draw(steps=30, seed=n) for n in range(10)))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) <= 3
        assert len(service.stages.drawn) == 1 + statuses.count(200), "the others never came near the engine"

    with_service(test, access=QUOTA, engine=ENGINE)


def test_a_picture_above_the_whole_quota_is_refused_for_good() -> None:
    async def test(service: Service) -> None:
        assert (await service.draw(steps=10)).status_code == 200
        refused = await service.draw(steps=100, cfg=2.0)
        check_refusal(refused, 403, "QuotaTooSmallError")
        assert "your quota is 1 s of a device in 3600 s; ask for fewer steps or pixels" in refused.json()["error"]

    with_service(test, access=QUOTA, engine=ENGINE)


def test_asking_and_leaving_is_not_free(key_file: str) -> None:
    async def test(service: Service) -> None:
        assert (await service.draw(headers=BEARER, steps=4)).status_code == 200
        before_s = await metric(service, "likeness_client_device_seconds_total", client="studio")
        drawing = asyncio.create_task(service.draw(headers=BEARER, steps=60))
        num_steps = service.stages.engine.stats().num_steps
        await until(lambda: service.stages.engine.stats().num_steps > num_steps + 5)
        drawing.cancel()
        await asyncio.gather(drawing, return_exceptions=True)
        charged_s = await metric(service, "likeness_client_device_seconds_total", client="studio") - before_s
        assert charged_s > 0.04

    with_service(test, access={"key_file": key_file, **QUOTA}, engine=ENGINE)


def test_a_failure_of_ours_is_charged_nothing(key_file: str) -> None:
    async def test(service: Service) -> None:
        service.stages.draw_error = ZeroDivisionError()
        for _ in range(3):
            assert (await service.draw(headers=BEARER)).status_code == 500
        assert await metric(service, "likeness_client_device_seconds_total", client="studio") == 0.0
        service.stages.draw_error = None
        assert (await service.draw(headers=BEARER)).status_code == 200, "and none of them is still at work"

    with_service(test, access={"key_file": key_file, "limits": {"max_concurrent": 1, "device_s": 5.0}})


def test_a_stream_of_events_is_one_visit(key_file: str) -> None:
    async def test(service: Service) -> None:
        accept = {**BEARER, "Accept": "text/event-stream"}
        for _ in range(2):
            response = await service.draw(headers=accept, steps=5)
            assert response.status_code == 200
            assert "event: done" in response.text
            assert response.headers["cache-control"] == "no-store"
        assert await metric(service, "likeness_client_device_seconds_total", client="studio") > 0.0

    with_service(test, access={"key_file": key_file, "limits": {"max_concurrent": 1}})


async def followed(service: Service, priority: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """The priority that a picture was drawn with, and the warning of its answer."""
    answer = await service.draw(headers=headers, priority=priority)
    assert answer.status_code == 200
    return service.stages.drawn[-1].request.priority, answer.headers.get("x-warning", "")


def test_a_high_priority_takes_a_key(key_file: str) -> None:
    async def nobody(service: Service) -> None:
        lowered = "priority_lowered: priority high is not yours to ask for here; the picture was drawn with priority "
        assert await followed(service, "high") == (1, lowered + "normal")
        assert await followed(service, "normal") == (1, "")
        assert await followed(service, "low") == (0, "")

    async def studio(service: Service) -> None:
        assert await followed(service, "high", BEARER) == (2, "")

    with_service(nobody)
    with_service(studio, access={"key_file": key_file})


def test_the_highest_priority_is_a_setting_and_a_clients_own(key_file: str) -> None:
    async def everybody(service: Service) -> None:
        assert await followed(service, "high") == (2, "")

    async def studio(service: Service) -> None:
        assert (await followed(service, "high", BEARER))[0] == 1
        assert (await followed(service, "low", BEARER))[0] == 0

    async def studio_of_its_own(service: Service) -> None:
        assert (await followed(service, "normal", BEARER))[0] == 0

    with_service(everybody, access={"limits": {"max_priority": "high"}})
    with_service(studio, access={"key_file": key_file, "limits": {"max_priority": "normal"}})
    with Path(key_file).open("a") as file:
        file.write('max_priority = "low"\n')
    with_service(studio_of_its_own, access={"key_file": key_file})


def test_every_answer_tells_browsers_to_be_careful() -> None:
    async def test(service: Service) -> None:
        async def broken() -> Any:
            raise ZeroDivisionError

        answers = [await service.draw(), await service.draw(width=1000), await service.client.get("/nowhere")]
        answers += [await service.client.get(path) for path in (*OPEN, "/metrics")]
        service.stages.statuses = broken  # type: ignore[method-assign]
        answers.append(await service.client.get("/ready"))
        assert [answer.status_code for answer in answers].count(500) == 1
        for answer in answers:
            told = {name: answer.headers.get_list(name) for name in browser.HEADERS}
            assert all(len(values) == 1 for values in told.values()), (answer.url, told)
            assert told["X-Content-Type-Options"] == ["nosniff"]
            assert "frame-ancestors 'none'" in told["Content-Security-Policy"][0]
        docs = next(answer for answer in answers if answer.url.path == "/docs")
        assert "script-src 'unsafe-inline'" in docs.headers["content-security-policy"], "its own words count"
        assert answers[0].headers["cache-control"] == "no-store"

    with_service(test)


PREFLIGHT = {
    "Origin": "https://studio.example.org",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,authorization",
}


def test_pages_of_other_sites_are_refused_by_default() -> None:
    async def test(service: Service) -> None:
        asked = await service.client.request("OPTIONS", URL, headers=PREFLIGHT)
        assert asked.status_code == 405
        drawn = await service.draw(headers={"Origin": "https://studio.example.org"})
        for answer in (asked, drawn):
            assert not [name for name in answer.headers if name.startswith("access-control")]
        simple = {"Content-Type": "text/plain", "Origin": "https://studio.example.org"}
        answer = await service.client.post(URL, content=json.dumps(body()), headers=simple)
        assert answer.status_code == 415, "what browsers send without asking is not taken"

    with_service(test)


def test_pages_of_allowed_origins_may_call_with_a_key(key_file: str) -> None:
    async def test(service: Service) -> None:
        asked = await service.client.request("OPTIONS", URL, headers=PREFLIGHT)
        assert asked.status_code == 200, "browsers ask without a key"
        assert asked.headers["access-control-allow-origin"] == "https://studio.example.org"
        other = await service.client.request("OPTIONS", URL, headers=PREFLIGHT | {"Origin": "https://evil.example"})
        assert other.status_code == 400
        assert "access-control-allow-origin" not in other.headers
        origin = {"Origin": "https://studio.example.org"}
        drawn, refused = await service.draw(headers={**origin, **BEARER}), await service.draw(headers=origin)
        assert (drawn.status_code, refused.status_code) == (200, 401)
        for answer in (drawn, refused):
            assert answer.headers["access-control-allow-origin"] == "https://studio.example.org"
            assert "access-control-allow-credentials" not in answer.headers
        described = (await service.client.get("/openapi.json")).json()["paths"][URL]["post"]["responses"]["200"]
        assert set(described["headers"]) <= set(drawn.headers["access-control-expose-headers"].split(", "))

    with_service(test, access={"key_file": key_file, "allowed_origins": ["https://studio.example.org"]})


def test_the_documentation_asks_for_a_key_where_one_is_needed(key_file: str) -> None:
    async def secured(service: Service) -> None:
        spec = (await service.client.get("/openapi.json")).json()
        assert spec["paths"][URL]["post"]["security"] == [{"HTTPBearer": []}, {"APIKeyHeader": []}]
        assert "security" not in spec["paths"]["/v1/models"]["get"]
        page = (await service.client.get("/docs")).text
        assert '<input type="password" id="key"' in page
        assert {"401", "403", "429", "431"} <= spec["paths"][URL]["post"]["responses"].keys()

    async def free(service: Service) -> None:
        spec = (await service.client.get("/openapi.json")).json()
        assert "security" not in spec["paths"][URL]["post"]
        assert 'id="key"' not in (await service.client.get("/docs")).text

    with_service(secured, access={"key_file": key_file})
    with_service(free)
