"""The stage that measures faces: the same picture once, its own limits, absent unless enabled."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from typing import Any

import numpy as np
import pytest

from engine.errors import ImageTooLargeError, UnreadableImageError
from engine.face.decode import ImageLimits
from engine.face.identity import IdentityVector
from engine.profile import load_profile
from engine.request import RgbImage
from serve_app.app import build
from serve_app.config_deployments import deployment_problems, together_problems
from serve_app.identity_stage import IdentityStage, picture_limits
from serve_app.settings import AppSettings, LimitSettings
from serve_app.stages import IDENTITY_STAGE, IdentityJob, IdentityResult
from tests.asgi import FAKE_SETTINGS, picture


@dataclasses.dataclass
class MeanColour:
    """An identity model: a picture's mean colour, but of black ones none."""

    seen: list[int] = dataclasses.field(default_factory=list)

    def vector(self, image: RgbImage) -> IdentityVector | None:
        self.seen.append(threading.get_ident())
        vector = np.zeros(128, dtype=np.float32)
        vector[:3] = image.mean(axis=(0, 1)) / 255.0
        return vector if image.any() else None


def job(colour: tuple[int, int, int], **options: Any) -> IdentityJob:
    return IdentityJob(data=picture(colour, **options), media_type="image/png")


def identified(model: MeanColour, *jobs: IdentityJob, cache_bytes: int = 2**20) -> list[IdentityResult]:
    stage = IdentityStage(lambda: model, limits=ImageLimits(max_pixels=64 * 64), cache_bytes=cache_bytes)

    async def work() -> list[IdentityResult]:
        return [await stage.identify(one) for one in jobs]

    return asyncio.run(work())


def test_a_picture_is_measured_once_and_not_on_the_event_loop() -> None:
    model = MeanColour()
    red, blue, again = identified(model, job((255, 0, 0)), job((0, 0, 255)), job((255, 0, 0)))
    assert red.vector is not None
    assert blue.vector is not None
    assert red.vector[:3].tolist() == [1.0, 0.0, 0.0]
    assert blue.vector[:3].tolist() == [0.0, 0.0, 1.0]
    assert again is red
    assert len(model.seen) == 2
    assert threading.get_ident() not in model.seen


def test_that_there_is_no_face_is_remembered_too() -> None:
    model = MeanColour()
    results = identified(model, job((0, 0, 0)), job((0, 0, 0)))
    assert [result.vector for result in results] == [None, None]
    assert len(model.seen) == 1


def test_without_a_cache_every_picture_is_measured() -> None:
    model = MeanColour()
    identified(model, job((255, 0, 0)), job((255, 0, 0)), cache_bytes=0)
    assert len(model.seen) == 2


def test_what_is_no_picture_or_too_large_is_refused() -> None:
    with pytest.raises(UnreadableImageError):
        identified(MeanColour(), IdentityJob(data=b"no picture", media_type="image/png"))
    with pytest.raises(ImageTooLargeError):
        identified(MeanColour(), job((255, 0, 0), side_px=65))


def test_the_largest_picture_that_is_drawn_may_be_measured_however_small_references_must_be() -> None:
    profile = load_profile("embedded")
    limits = picture_limits(LimitSettings(max_reference_bytes=1000, max_reference_pixels=256), profile)
    assert limits.max_pixels == profile.size.max_pixels
    assert limits.max_bytes > 3 * profile.size.max_pixels
    assert picture_limits(LimitSettings(), profile).max_pixels == LimitSettings().max_reference_pixels


def deployments(**changes: Any) -> set[str]:
    """Names of the deployments that the ingress is bound to."""
    application = build(AppSettings.model_validate(FAKE_SETTINGS | changes))
    return {
        bound._bound_deployment.name
        for bound in application._bound_deployment.init_args
        if hasattr(bound, "_bound_deployment")
    }


def test_the_stage_is_part_of_the_application_only_where_enabled() -> None:
    assert IDENTITY_STAGE not in deployments()
    assert IDENTITY_STAGE in deployments(identity={"enabled": True})


def test_a_configuration_may_name_the_stage_only_where_it_is_enabled() -> None:
    named = [{"name": IDENTITY_STAGE, "num_replicas": 2}]
    assert deployment_problems(named, "deployments") == []
    disabled = AppSettings.model_validate(FAKE_SETTINGS)
    enabled = AppSettings.model_validate(FAKE_SETTINGS | {"identity": {"enabled": True}})
    (problem,) = together_problems(disabled, named, None, "applications[0]")
    assert problem.endswith(f"there is no {IDENTITY_STAGE} unless args.identity.enabled is true")
    assert together_problems(enabled, named, None, "applications[0]") == []
