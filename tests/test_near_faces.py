"""A face that the ingress has seen before is not sent to the face stage again, unless something else is asked of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from engine.errors import FaceNotFoundError
from serve_app.data_url import parse
from serve_app.near_faces import NearFaces
from serve_app.sample import SAMPLE_FACE_URL
from serve_app.stages import FaceJob, FaceResult
from serve_app.wrapped_backend import WrappedBackend
from tests.asgi import Service, with_service

JOB = FaceJob(data=b"picture", media_type="image/png", policy="prefer", provider="CPU")


def test_the_same_reference_is_prepared_once() -> None:
    async def test(service: Service) -> None:
        first, second = [await service.draw(headers={"Accept": "application/json"}) for _ in range(2)]
        assert len(service.stages.prepared) == 1
        assert [answer.json()["face"]["is_cached"] for answer in (first, second)] == [False, True]
        assert first.json()["image"] == second.json()["image"]
        assert first.json()["face"]["box"] == second.json()["face"]["box"]

    with_service(test)


def test_without_room_every_reference_is_prepared_anew() -> None:
    async def test(service: Service) -> None:
        for _ in range(2):
            assert (await service.draw()).status_code == 200
        assert len(service.stages.prepared) == 2

    with_service(test, face={"cpu_encoder": False, "cache_bytes": 0})


@pytest.mark.parametrize(
    "change", [{"data": b"other"}, {"media_type": "image/jpeg"}, {"policy": "require"}, {"provider": "GPU"}]
)
def test_whatever_changes_the_result_is_asked_for_again(change: dict[str, Any]) -> None:
    async def test(service: Service) -> None:
        prepared = await service.stages.prepare(sample_job())
        asked: list[FaceJob] = []

        class Stage(WrappedBackend):
            async def prepare(self, job: FaceJob) -> FaceResult:
                asked.append(job)
                return prepared

        near = NearFaces(Stage(service.stages), cache_bytes=10**6)
        await near.prepare(JOB)
        assert (await near.prepare(JOB)).is_cached
        await near.prepare(dataclasses.replace(JOB, **change))
        assert len(asked) == 2

    with_service(test)


def test_a_failure_is_not_kept() -> None:
    async def test(service: Service) -> None:
        service.stages.prepare_error = FaceNotFoundError("no face")
        assert (await service.draw()).status_code == 400
        service.stages.prepare_error = None
        assert (await service.draw()).status_code == 200

    with_service(test)


def sample_job() -> FaceJob:
    sample = parse(SAMPLE_FACE_URL)
    return dataclasses.replace(JOB, data=sample.data, media_type=sample.media_type)
