"""``POST /workflow``: the old system's graph draws the picture that the plain request draws."""

from __future__ import annotations

from typing import Any

from serve_app.contract import parse_body
from serve_app.workflow import graph_from_request
from tests.asgi import Service, body, with_service


def graph(**changes: Any) -> dict[str, Any]:
    return graph_from_request(parse_body(body(**changes)))


def test_a_graph_draws_the_picture_of_its_request() -> None:
    async def test(service: Service) -> None:
        plain = await service.draw(seed=5, cfg=2.0, negative_prompt="hat", guidance=2.0, face_policy="ignore")
        changes = {"seed": 5, "cfg": 2.0, "negative_prompt": "hat", "guidance": 2.0, "face_policy": "ignore"}
        for sent in (graph(**changes), {"prompt": graph(**changes), "client_id": "me"}):
            drawn = await service.client.post("/workflow", json=sent)
            assert drawn.status_code == 200, drawn.text
            assert drawn.headers["content-type"] == "image/jpeg"
            assert drawn.content == plain.content
            assert drawn.headers["x-seed"] == "5"

    with_service(test)


def test_a_refused_graph_is_answered_in_the_contract_s_form() -> None:
    async def test(service: Service) -> None:
        sent = graph()
        sent["14"] = {"class_type": "LoraLoader", "inputs": {}}
        answer = await service.client.post("/workflow", json=sent)
        assert answer.status_code == 400
        assert answer.json()["type"] == "InvalidRequestError"
        assert answer.json()["error"].startswith('14.class_type "LoraLoader" is not known')
        assert answer.json()["details"]["fields"][0]["field"] == "14.class_type"
        assert not service.stages.drawn

    with_service(test)


def test_the_documentation_s_example_can_be_sent_as_it_is() -> None:
    async def test(service: Service) -> None:
        spec = (await service.client.get("/openapi.json")).json()
        example = spec["paths"]["/workflow"]["post"]["requestBody"]["content"]["application/json"]["example"]
        answer = await service.client.post("/workflow", json=example)
        assert answer.status_code == 200, answer.text
        assert "ApplyFluxIPAdapter" in (await service.client.get("/docs")).text

    with_service(test)
