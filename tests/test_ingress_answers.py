"""Good requests: the picture, its headers, the JSON, and that everyone gets their own."""

from __future__ import annotations

import asyncio
import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.fake import picture as fake_picture
from serve_app import data_url
from serve_app.contract_answers import GenerationAnswer
from serve_app.generation import MAX_RANDOM_SEED
from tests.asgi import Service, picture, picture_url, with_service


def opened(data: bytes) -> Image.Image:
    """A picture, decoded to its end."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_the_answer_is_a_jpeg_with_the_contracts_headers() -> None:
    async def test(service: Service) -> None:
        response = await service.draw(width=160, height=96, steps=4)
        assert response.status_code == 200
        assert response.headers["content-type"] == "image/jpeg"
        assert re.fullmatch(r"\d+\.\d{6}", response.headers["x-cost-usd"])
        assert re.fullmatch(r"\d+\.\d{3}", response.headers["x-execution-time-sec"])
        assert response.headers["x-gpu-type"] == "NVIDIA L40S"
        # 4 steps of 2 ms, alone, at 1.98 dollars an hour
        assert float(response.headers["x-cost-usd"]) == pytest.approx(0.008 * 1.98 / 3600, abs=5e-7)
        image = opened(response.content)
        assert (image.format, image.size, image.mode) == ("JPEG", (160, 96), "RGB")
        assert "x-warning" not in response.headers

    with_service(test)


@pytest.mark.parametrize(("accept", "format_"), [("image/jpeg", "JPEG"), ("image/png", "PNG"), ("image/webp", "WEBP")])
def test_other_forms_hold_the_same_picture(accept: str, format_: str) -> None:
    async def test(service: Service) -> None:
        response = await service.draw(headers={"Accept": accept})
        image = opened(response.content)
        assert (response.headers["content-type"], image.format) == (accept, format_)
        drawn = service.stages.drawn[0].request
        exact = fake_picture(drawn, service.profile.check_request(drawn)).astype(int)
        difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - exact)
        assert difference.max() <= (0 if format_ == "PNG" else 16)

    with_service(test)


def test_json_says_everything_the_headers_say() -> None:
    async def test(service: Service) -> None:
        response = await service.draw(headers={"Accept": "application/json"}, width=512, height=320, seed=7)
        answer = GenerationAnswer.model_validate(response.json(), strict=True)
        headers = response.headers
        inside = data_url.parse(answer.image)
        assert (inside.media_type, opened(inside.data).size) == ("image/jpeg", (512, 320))
        assert f"{answer.cost_usd:.6f}" == headers["x-cost-usd"]
        assert f"{answer.execution_time_s:.3f}" == headers["x-execution-time-sec"]
        assert answer.gpu_type == headers["x-gpu-type"]
        assert (str(answer.seed), answer.request_id) == (headers["x-seed"], headers["x-request-id"])
        assert answer.model.id == headers["x-model"] == "embedded"
        assert answer.face.box is not None
        assert (answer.face.policy, answer.face.provider) == ("prefer", "GPU")
        assert answer.timings.total_s >= answer.timings.denoise_s > 0
        names = [part.partition(";")[0] for part in headers["server-timing"].split(", ")]
        assert [f"{name}_s" for name in names] == list(answer.timings.model_dump(exclude_none=True))
        assert (answer.face_similarity, answer.candidates, answer.timings.identity_s) == (None, None, None)
        assert not headers.keys() & {"x-face-similarity", "x-candidates"}

    with_service(test)


def test_a_picture_that_was_scaled_up_says_so() -> None:
    async def test(service: Service) -> None:
        response = await service.draw(headers={"Accept": "application/json"}, width=1024, height=512, steps=1)
        answer = GenerationAnswer.model_validate(response.json())
        size = service.profile.size.drawn_size(1024, 512)
        assert (answer.drawn_width, answer.drawn_height, answer.is_upscaled) == (size.width_px, size.height_px, True)
        assert response.headers["x-image-size"] == "1024x512"
        assert response.headers["x-drawn-size"] == f"{size.width_px}x{size.height_px}"

    with_service(test)


def test_the_contracts_defaults_reach_the_engine() -> None:
    async def test(service: Service) -> None:
        response = await service.draw(width=..., height=..., steps=...)
        assert response.status_code == 200
        request = service.stages.drawn[0].request
        assert (request.width_px, request.height_px, request.num_steps) == (1024, 1024, 20)
        assert (request.cfg, request.guidance, request.seed, request.ip_scale) == (1.0, 3.5, 42, 0.8)
        assert (request.negative_prompt, request.scheduler) == ("", "simple")

    with_service(test)


def test_every_field_reaches_the_stages() -> None:
    async def test(service: Service) -> None:
        asked: dict[str, Any] = {"prompt": "Ä 🦊", "negative_prompt": "blurry", "cfg": 2.5, "guidance": 4.0}
        asked |= {"seed": 2**63 - 1, "ipadapter_strength": 0.25, "scheduler": "flux"}
        asked |= {"face_policy": "ignore", "face_provider": "GPU", "reference_image": picture_url()}
        await service.draw(**asked)
        request, job = service.stages.drawn[0].request, service.stages.prepared[0]
        assert (request.prompt, request.negative_prompt, request.cfg) == ("Ä 🦊", "blurry", 2.5)
        assert (request.guidance, request.seed, request.ip_scale) == (4.0, 2**63 - 1, 0.25)
        assert request.scheduler == "flux"
        assert request.reference is not None
        assert (job.policy, job.provider, job.media_type, job.data) == ("ignore", "GPU", "image/png", picture())

    with_service(test)


def test_the_face_policys_default_is_the_deployments() -> None:
    async def test(service: Service) -> None:
        await service.draw()
        await service.draw(face_policy="prefer")
        assert [job.policy for job in service.stages.prepared] == ["require", "prefer"]

    with_service(test, face={"cpu_encoder": False, "policy": "require"})


def test_a_random_seed_is_reported_and_draws_the_same_again() -> None:
    async def test(service: Service) -> None:
        first, second = await service.draw(seed=-1), await service.draw(seed=-1)
        seeds = [int(response.headers["x-seed"]) for response in (first, second)]
        assert seeds[0] != seeds[1]
        assert all(0 <= seed < MAX_RANDOM_SEED for seed in seeds)
        assert (await service.draw(seed=seeds[0])).content == first.content

    with_service(test)


def test_a_fallback_is_a_warning_in_header_and_json() -> None:
    async def test(service: Service) -> None:
        response = await service.draw(headers={"Accept": "application/json"}, reference_image=picture_url())
        answer = response.json()
        (warning,) = answer["warnings"]
        assert warning["code"] == "face_fallback"
        assert "no face was found" in warning["message"]
        assert response.headers["x-warning"] == f"face_fallback: {warning['message']}"
        assert answer["face"]["box"] is None
        ignored = await service.draw(reference_image=picture_url(), face_policy="ignore")
        assert "x-warning" not in ignored.headers

    with_service(test)


def test_everyone_gets_their_own_picture() -> None:
    async def test(service: Service) -> None:
        asked: list[dict[str, Any]] = [
            {"seed": seed, "prompt": prompt, "reference_image": picture_url((seed * 60, 10, 10)), "cfg": cfg}
            for seed in range(4)
            for prompt, cfg in (("a king", 1.0), ("a queen", 2.0))
        ]
        together = await asyncio.gather(*(service.draw(**changes) for changes in asked))
        alone = [await service.draw(**changes) for changes in asked]
        assert [response.content for response in together] == [response.content for response in alone]
        assert len({response.content for response in together}) == len(asked)

    with_service(test)


def test_requests_with_the_same_id_at_once_are_both_served() -> None:
    async def test(service: Service) -> None:
        both = await asyncio.gather(*(service.draw(headers={"X-Request-Id": "same"}, seed=seed) for seed in (1, 2)))
        assert [response.status_code for response in both] == [200, 200]
        assert [response.headers["x-request-id"] for response in both] == ["same", "same"]
        assert len({job.request.request_id for job in service.stages.drawn}) == 2

    with_service(test)


@pytest.mark.parametrize("given", ["a b", "x" * 65, "a;b", "%41"])
def test_an_odd_request_id_is_replaced(given: str) -> None:
    async def test(service: Service) -> None:
        response = await service.draw(headers={"X-Request-Id": given})
        assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])

    with_service(test)
