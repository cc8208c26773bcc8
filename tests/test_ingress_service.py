"""The routes beside the picture: health, readiness, models, metrics and the documentation, which must be true."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from serve_app import docs_page
from serve_app.contract import GenerationBody
from serve_app.contract_answers import ModelList
from serve_app.error_answers import ANSWERS, describe
from serve_app.errors import StageUnavailableError
from serve_app.live_settings import LiveSettings
from serve_app.metrics.metric import Values
from serve_app.metrics.recorder import Report
from serve_app.openapi import ERROR_EXAMPLES
from serve_app.sample import SAMPLE_FACE_URL
from serve_app.stages import DEPLOYMENTS, FLUX_REPLICA
from tests.asgi import URL, Service, with_service


def test_health_knows_nothing_of_the_stages() -> None:
    async def test(service: Service) -> None:
        service.stages.not_ready = frozenset(DEPLOYMENTS)
        response = await service.client.get("/health")
        assert (response.status_code, response.json()) == (200, {"status": "alive"})

    with_service(test)


def test_ready_names_the_stage_that_is_not() -> None:
    async def test(service: Service) -> None:
        response = await service.client.get("/ready")
        assert response.status_code == 200
        assert [stage["name"] for stage in response.json()["stages"]] == list(DEPLOYMENTS)
        service.stages.not_ready = frozenset({FLUX_REPLICA})
        response = await service.client.get("/ready")
        answer = response.json()
        assert (response.status_code, answer["type"]) == (503, "StageUnavailableError")
        assert answer["error"] == "not ready: FluxReplica (starting)"
        assert [stage["is_ready"] for stage in answer["details"]["stages"]] == [True, True, False]
        assert response.headers["retry-after"].isdigit()

    with_service(test)


def test_models_are_the_profile() -> None:
    async def test(service: Service) -> None:
        models = ModelList.model_validate((await service.client.get("/v1/models")).json())
        (card,) = models.data
        profile = service.profile
        assert (card.id, card.title) == (profile.name, profile.title)
        assert (card.size.native_width, card.size.native_height) == (256, 256)
        assert card.limits.max_steps == profile.limits.max_num_steps
        assert card.licence.name == profile.licence.name

    with_service(test)


def test_models_tell_limits_that_changed_while_the_service_runs() -> None:
    async def test(service: Service) -> None:
        generator = service.app.state.generator
        live = LiveSettings.model_validate({"limits": {"request_timeout_s": 7.0}})
        generator.use(live.over(generator.settings))
        models = ModelList.model_validate((await service.client.get("/v1/models")).json())
        assert models.data[0].limits.request_timeout_s == 7.0

    with_service(test)


def test_the_index_leads_to_the_docs() -> None:
    async def test(service: Service) -> None:
        index = (await service.client.get("/")).json()
        assert (await service.client.get(index["docs"])).status_code == 200
        assert index["generate"] == f"POST {URL}"

    with_service(test)


def test_metrics_count_what_happened() -> None:
    async def test(service: Service) -> None:
        await service.draw(steps=5)
        await service.draw(headers={"Accept": "application/json"}, steps=5)
        await service.draw(width=1000)
        response = await service.client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        samples = {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(response.text)
            for sample in family.samples
        }
        assert samples["likeness_requests_received_total",] == 3
        assert samples["likeness_requests_total", "ok", "none", "200"] == 2
        assert samples["likeness_requests_total", "refused", "InvalidRequestError", "400"] == 1
        assert samples["likeness_requests_total", "failed", "EngineStoppedError", "503"] == 0
        assert samples["likeness_images_total", "image/jpeg"] == 1
        assert samples["likeness_images_total", "application/json"] == 1
        assert samples["likeness_engine_steps_total",] == 10
        assert samples["likeness_engine_sample_steps_total",] == 10
        assert abs(samples["likeness_device_seconds_total", "NVIDIA L40S", "denoise"] - 0.02) < 1e-9
        assert abs(samples["likeness_cost_usd_total",] - 0.02 * 1.98 / 3600) < 1e-12
        assert samples["likeness_stage_seconds_count", "total"] == 2
        assert samples["likeness_image_steps_total",] == 10
        assert samples["likeness_in_flight",] == 0
        assert samples["likeness_replicas", "FluxReplica", "ready"] == 1
        assert samples["likeness_stage_ready", "FluxReplica"] == 1

    with_service(test)


def test_no_sums_are_better_than_sums_that_sink() -> None:
    """A scrape that fails is a gap; one with a smaller counter would be taken for a counter that began anew."""

    class OutOfReach:
        async def __call__(self, report: Report) -> Values:
            raise StageUnavailableError("the metrics ledger can't be reached; try again shortly")

    async def test(service: Service) -> None:
        service.metrics._exchange = OutOfReach()
        response = await service.client.get("/metrics")
        assert (response.status_code, response.json()["type"]) == (503, "StageUnavailableError")

    with_service(test)


def test_the_documented_requests_run_and_their_answers_are_documented() -> None:
    async def test(service: Service) -> None:
        spec = (await service.client.get("/openapi.json")).json()
        route = spec["paths"][URL]["post"]
        content = route["requestBody"]["content"]["application/json"]
        assert content["schema"]["properties"]["width"]["maximum"] == service.profile.size.max_side_px
        for example in content["examples"].values():
            response = await service.client.post(URL, json=example["value"])
            assert response.status_code == 200, response.text
            assert response.headers["content-type"] in route["responses"]["200"]["content"]
            documented = {name.lower() for name in route["responses"]["200"]["headers"]}
            assert documented - {"x-warning", "x-face-similarity", "x-candidates"} <= set(response.headers)

    with_service(test)


def test_the_docs_page_holds_everything_and_loads_nothing() -> None:
    async def test(service: Service) -> None:
        response = await service.client.get("/docs")
        page, spec = response.text, (await service.client.get("/openapi.json")).json()
        for field in GenerationBody.model_fields:
            assert f"<code>{field}</code>" in page
        for error in ERROR_EXAMPLES:
            reply = describe(error, request_id="")
            assert reply.status in (404, 405) or f"&quot;type&quot;: &quot;{reply.type_name}&quot;" in page
        for path in spec["paths"]:
            assert path in page
        assert SAMPLE_FACE_URL in page
        assert not re.search(r"(src|@import|url\()\s*=?\s*[\"']?(https?:)?//", page), (
            "it works without any other server"
        )
        assert "default-src 'none'" in response.headers["content-security-policy"]

    with_service(test)


def test_the_docs_page_escapes_what_it_shows() -> None:
    spec = {
        "info": {"title": "<script>alert(1)</script>", "description": "**a** `b<` [c](https://d/) [e](javascript:f)"},
        "paths": {},
    }
    page = docs_page.render(spec)
    assert "<script>alert(1)" not in page
    assert '<b>a</b> <code>b&lt;</code> <a href="https://d/" rel="noreferrer">c</a> [e](javascript:f)' in page


def test_every_error_of_the_picture_route_is_documented_with_its_status() -> None:
    async def test(service: Service) -> None:
        responses = (await service.client.get("/openapi.json")).json()["paths"][URL]["post"]["responses"]
        documented = {
            (int(status), name)
            for status, response in responses.items()
            if status != "200"
            for name in response["content"]["application/json"]["examples"]
        }
        expected = {(answer.status, error.__name__) for error, answer in ANSWERS.items()} | {(500, "InternalError")}
        expected -= {(404, "UnknownPathError"), (405, "MethodNotAllowedError"), (400, "ReferenceImageError")}
        assert documented == expected

    with_service(test)
