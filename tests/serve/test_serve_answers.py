"""Good requests through real HTTP: every form, everyone their own, and callers that leave."""

from __future__ import annotations

import concurrent.futures
import io
import re

import httpx
import numpy as np
import pytest
from PIL import Image

from serve_app import data_url
from serve_app.contract_answers import GenerationAnswer
from serve_app.sample import SAMPLE_FACE_URL
from serve_app.stages import FLUX_REPLICA
from tests.asgi import URL, picture_url
from tests.serve.conftest import RunningService, until

pytestmark = pytest.mark.serve


def test_the_contracts_request_brings_a_jpeg_and_three_headers(service: RunningService) -> None:
    contract = {
        "prompt": "A professional AI influencer portrait",
        "reference_image": SAMPLE_FACE_URL,
        "negative_prompt": "",
        "width": 1024,
        "height": 1024,
        "steps": 20,
        "cfg": 1.0,
        "seed": 42,
        "ipadapter_strength": 0.8,
        "face_provider": "CPU",
    }
    response = service.client.post(URL, json=contract)
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/jpeg"
    image = Image.open(io.BytesIO(response.content))
    assert (image.format, image.size) == ("JPEG", (1024, 1024))
    assert re.fullmatch(r"\d+\.\d{6}", response.headers["x-cost-usd"])
    assert re.fullmatch(r"\d+\.\d{3}", response.headers["x-execution-time-sec"])
    assert response.headers["x-gpu-type"] == "NVIDIA L40S"
    assert response.headers["x-drawn-size"] == "256x256"
    assert "x-warning" not in response.headers
    shortest = service.client.post(URL, json={name: contract[name] for name in ("prompt", "reference_image")})
    assert shortest.content == response.content, "the defaults are the contract's"


@pytest.mark.parametrize(("accept", "format_"), [("image/png", "PNG"), ("image/webp", "WEBP")])
def test_other_forms(service: RunningService, accept: str, format_: str) -> None:
    response = service.draw(headers={"Accept": accept})
    image = Image.open(io.BytesIO(response.content))
    assert (response.headers["content-type"], image.format, image.size) == (accept, format_, (128, 96))


def test_json(service: RunningService) -> None:
    response = service.draw(headers={"Accept": "application/json"}, seed=-1)
    answer = GenerationAnswer.model_validate(response.json(), strict=True)
    assert answer.face.box is not None, "there is a face in the sample"
    assert answer.face.box.width_px <= answer.face.reference_width_px == 64
    assert response.headers["x-seed"] == str(answer.seed)
    again = service.draw(seed=answer.seed)
    assert again.content == data_url.parse(answer.image).data


def test_the_same_reference_is_prepared_once(service: RunningService) -> None:
    reference = picture_url((1, 2, 3), side_px=48)
    faces = [service.draw({"Accept": "application/json"}, reference_image=reference).json()["face"] for _ in range(2)]
    assert [face["is_cached"] for face in faces] == [False, True]
    assert faces[0]["box"] is None


def test_there_is_one_request_id_and_it_is_the_callers(service: RunningService) -> None:
    response = service.draw(headers={"X-Request-Id": "my-id.1"})
    assert response.headers.get_list("x-request-id") == ["my-id.1"]
    assert len(service.draw().headers.get_list("x-request-id")) == 1


def test_everyone_gets_their_own_picture(service: RunningService) -> None:
    asked = [
        {
            "seed": seed,
            "prompt": f"portrait {seed % 3}",
            "reference_image": picture_url((20 * seed, 90, 90)),
            "cfg": 1.0 + seed % 2,
            "width": 128 + 16 * (seed % 2),
        }
        for seed in range(10)
    ]
    accept = {"Accept": "image/png"}
    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda changes: service.draw(accept, **changes), asked))
    alone = [service.draw(accept, **changes) for changes in asked]
    assert [response.status_code for response in together] == [200] * len(asked)
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(pixels(one), pixels(other))
    assert len({response.content for response in together}) == len(asked)


def pixels(response: httpx.Response) -> np.ndarray:
    """A picture's values, ``(H, W, 3)``."""
    return np.asarray(Image.open(io.BytesIO(response.content)))


def test_a_caller_that_leaves_frees_the_engine(service: RunningService) -> None:
    cancelled = service.metric("likeness_requests_total", outcome="cancelled")
    dropped = service.metric("likeness_engine_requests_total", outcome="cancelled")
    before = service.metric("likeness_engine_sample_steps_total")
    for _ in range(3):
        with service.asking(steps=100):
            service.wait_for_work(FLUX_REPLICA)
        until(lambda: not service.busy_pids(FLUX_REPLICA))
    until(lambda: service.metric("likeness_requests_total", outcome="cancelled") == cancelled + 3)
    until(lambda: service.metric("likeness_engine_requests_total", outcome="cancelled") == dropped + 3)
    num_steps = service.metric("likeness_engine_sample_steps_total") - before
    assert 0 < num_steps < 300 - 100, "each would have taken 100 steps"
    until(lambda: service.metric("likeness_in_flight") == 0)


def test_health_answers_while_pictures_are_drawn(service: RunningService) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        with service.held(FLUX_REPLICA):
            drawings = [pool.submit(service.draw, seed=seed) for seed in range(4)]
            until(lambda: service.metric("likeness_in_flight") == 4)
            assert service.client.get("/health").json() == {"status": "alive"}
            assert service.client.get("/ready").status_code == 200
            assert not any(drawing.done() for drawing in drawings), "they had to wait for the pictures"
        assert [drawing.result().status_code for drawing in drawings] == [200] * 4
