"""Score, best of n and minimum similarity through the HTTP application: drawn by a fake engine, measured by a script;
and once by the real network."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from engine.errors import NumericalError
from engine.face.decode import ImageLimits
from engine.face.detect import YuNetDetector
from engine.face.identity import DlibIdentity, IdentityVector
from engine.request import MAX_SEED
from serve_app import data_url as data_urls
from serve_app import ingress
from serve_app.access.metered import MeteredBackend
from serve_app.errors import StageUnavailableError
from serve_app.identity_stage import IdentityStage
from serve_app.sample import SAMPLE_FACE_URL
from serve_app.stages import DrawJob, DrawResult, IdentityJob, IdentityResult, OnDrawEvent
from tests.asgi import HeldSteps, Service, data_url, picture_url, until, with_service
from tests.face_pictures import astronaut, saved
from tests.sse import EVENTS, Caller, events_of
from tests.test_face_identity import SHEET

ENABLED: dict[str, Any] = {"identity": {"enabled": True, "max_candidates": 8}}
JSON = {"Accept": "application/json"}
Scores = Mapping[int, float | None]


class Script:
    """Stands in for the identity stage: for each prompt, similarities by seed, to the one reference of that prompt.

    Pictures of one prompt lie far from the references of all others. ``None`` is a picture without a face.
    """

    def __init__(self, service: Service, **prompts: Scores | None) -> None:
        self._prompts = prompts
        self._references: dict[bytes, str] = {}
        self._drawn: dict[bytes, tuple[str, int]] = {}
        self._draw = service.stages.draw
        self.num_here = 0
        self.most_at_once = 0
        self.seeds: list[int] = []
        service.stages.draw = self.draw  # type: ignore[method-assign]
        service.stages.identity = self.identify

    def reference(self, prompt: str, url: str = SAMPLE_FACE_URL) -> dict[str, Any]:
        """Fields of a request with this prompt."""
        self._references[data_urls.parse(url).data] = prompt
        return {"prompt": prompt, "reference_image": url}

    async def draw(self, job: DrawJob, on_event: OnDrawEvent | None = None) -> DrawResult:
        self.num_here += 1
        self.most_at_once = max(self.most_at_once, self.num_here)
        self.seeds.append(job.request.seed)
        try:
            result = await self._draw(job, on_event)
        finally:
            self.num_here -= 1
        key = (job.request.prompt, job.request.seed)
        assert self._drawn.setdefault(result.data, key) == key
        return result

    async def identify(self, job: IdentityJob) -> IdentityResult:
        prompt, seed = self._drawn.get(job.data, (self._references.get(job.data), None))
        assert prompt is not None, "a picture that is neither a reference nor drawn"
        scores = self._prompts[prompt]
        score = None if scores is None else 1.0 if seed is None else scores[seed]
        if score is None:
            return IdentityResult(vector=None)
        vector: IdentityVector = np.zeros(128, dtype=np.float32)
        vector[sorted(self._prompts).index(prompt)] = 100.0
        vector[100] = 1.2 * (1.0 - score)
        return IdentityResult(vector=vector)


def candidates_of(response: httpx.Response) -> dict[int, float | None]:
    return {one["seed"]: one["similarity"] for one in response.json()["candidates"]}


def test_a_score_is_measured_where_it_is_asked_for() -> None:
    async def test(service: Service) -> None:
        script = Script(service, someone={7: 0.73123})
        asked = script.reference("someone") | {"seed": 7}
        plain = await service.draw(**asked)
        assert not plain.headers.keys() & {"x-face-similarity", "x-candidates"}
        assert "identity" not in plain.headers["server-timing"]
        scored = await service.draw(**asked, score=True)
        assert (scored.status_code, scored.content) == (200, plain.content)
        assert scored.headers["x-face-similarity"] == "0.7312"
        assert scored.headers["x-candidates"] == "7=0.7312"
        assert "identity;dur=" in scored.headers["server-timing"]
        as_json = await service.draw(headers=JSON, **asked, score=True)
        assert as_json.json()["face_similarity"] == 0.7312
        assert candidates_of(as_json) == {7: 0.7312}
        assert as_json.json()["timings"]["identity_s"] >= 0.0
        assert await service.metric("likeness_identity_score_count") == 2

    with_service(test, **ENABLED)


def test_the_best_of_all_drawn_at_once_is_the_answer_and_all_are_charged() -> None:
    async def test(service: Service) -> None:
        scores = {42: 0.5, 43: 0.61, 44: None, 45: 0.4, 46: 0.61}
        script = Script(service, someone=scores)
        asked = script.reference("someone")
        response = await service.draw(headers=JSON, **asked, num_candidates=5)
        answer = response.json()
        assert (answer["seed"], answer["face_similarity"]) == (43, 0.61)
        assert response.headers["x-seed"] == "43"
        assert response.headers["x-candidates"] == "42=0.5000, 43=0.6100, 44=none, 45=0.4000, 46=0.6100"
        assert candidates_of(response) == scores
        assert script.most_at_once == 5
        charged_s = await service.metric("likeness_device_seconds_charged_total")
        assert answer["device_s"] == pytest.approx(charged_s, abs=1e-6)
        assert answer["cost_usd"] == pytest.approx(charged_s * 1.98 / 3600, abs=1e-8)
        assert f"{answer['cost_usd']:.6f}" == response.headers["x-cost-usd"]
        assert await service.metric("likeness_images_total") == 1
        assert await service.metric("likeness_identity_score_count") == 1
        stats = service.stages.engine.stats()
        assert (stats.num_finished, stats.num_waiting + stats.num_running) == (5, 0)
        assert charged_s == pytest.approx(stats.device_s)
        # Whoever likes it can have the very same picture again, alone.
        Script(service, someone=scores)
        again = await service.draw(headers=JSON, **asked, seed=43)
        assert again.json()["image"] == answer["image"]

    with_service(test, **ENABLED)


def test_with_a_bar_drawing_ends_at_the_first_that_reaches_it() -> None:
    async def test(service: Service) -> None:
        script = Script(service, someone={1: 0.6, 2: None, 3: 0.7, 4: 0.99})
        asked = script.reference("someone") | {"seed": 1, "num_candidates": 8}
        response = await service.draw(headers=JSON, **asked, min_similarity=0.7)
        assert (response.json()["seed"], response.json()["face_similarity"]) == (3, 0.7)
        assert candidates_of(response) == {1: 0.6, 2: None, 3: 0.7}
        assert (script.seeds, script.most_at_once) == ([1, 2, 3], 1)

    with_service(test, **ENABLED)


def test_a_bar_that_nothing_reaches_is_an_error_with_everything_that_was_found() -> None:
    async def test(service: Service) -> None:
        script = Script(service, someone={1: 0.6, 2: None, 3: 0.65}, faceless={1: None})
        asked = script.reference("someone") | {"seed": 1, "num_candidates": 3}
        response = await service.draw(**asked, min_similarity=1.0)
        error = response.json()
        assert (response.status_code, error["type"]) == (422, "SimilarityNotReachedError")
        assert error["error"].startswith("min_similarity 1 was not reached: of 3 pictures drawn the best has 0.65;")
        assert error["details"]["best_similarity"] == 0.65
        assert error["details"]["candidates"] == [
            {"seed": 1, "similarity": 0.6},
            {"seed": 2, "similarity": None},
            {"seed": 3, "similarity": 0.65},
        ]
        device_s = service.stages.engine.stats().device_s
        assert error["details"]["cost_usd"] == pytest.approx(device_s * 1.98 / 3600, abs=1e-8)
        assert float(response.headers["x-cost-usd"]) == pytest.approx(error["details"]["cost_usd"], abs=1e-6)
        assert "retry-after" not in response.headers, "the same request again has the same end"
        assert await service.metric("likeness_device_seconds_charged_total") == pytest.approx(device_s)
        assert await service.metric("likeness_images_total") == 0

        none = await service.draw(**script.reference("faceless"), seed=1, min_similarity=0.0)
        assert none.status_code == 422
        assert "of 1 picture drawn none shows a face" in none.json()["error"]
        assert none.json()["details"]["best_similarity"] is None

        streamed = await service.draw(
            headers=EVENTS, **script.reference("someone"), seed=1, num_candidates=3, min_similarity=0.9
        )
        last = events_of(streamed.text)[-1]
        assert (last.name, last.data["details"]["status"]) == ("error", 422)

    with_service(test, **ENABLED)


def test_a_missing_face_is_told() -> None:
    async def test(service: Service) -> None:
        script = Script(service, drawn_without={42: None}, sent_without=None)
        response = await service.draw(**script.reference("drawn_without"), score=True)
        assert (response.status_code, response.headers["x-face-similarity"]) == (200, "none")
        assert "no_similarity: no face was found in the picture that was drawn" in response.headers["x-warning"]

        asked = script.reference("sent_without", picture_url())
        response = await service.draw(headers=JSON, **asked, score=True)
        assert (response.status_code, response.json()["face_similarity"]) == (200, None)
        codes = [warning["code"] for warning in response.json()["warnings"]]
        assert codes == ["face_fallback", "no_similarity"]

        num_drawn = len(script.seeds)
        for choosy in ({"num_candidates": 2}, {"min_similarity": 0.3}):
            refused = await service.draw(**asked, **choosy)
            assert (refused.status_code, refused.json()["type"]) == (400, "FaceNotFoundError")
            assert "num_candidates and min_similarity" in refused.json()["error"]
        assert len(script.seeds) == num_drawn, "refused before anything is spent"

    with_service(test, **ENABLED)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"score": True}, ["score"]),
        ({"num_candidates": 2, "min_similarity": 0.0}, ["num_candidates", "min_similarity"]),
    ],
)
def test_what_this_service_does_not_do_is_refused_by_name(fields: dict[str, Any], named: list[str]) -> None:
    async def test(service: Service) -> None:
        response = await service.draw(**fields)
        assert (response.status_code, response.json()["type"]) == (400, "InvalidRequestError")
        assert [problem["field"] for problem in response.json()["details"]["fields"]] == named
        assert "needs a service that measures faces" in response.json()["error"]
        assert service.stages.prepared == []
        models = (await service.client.get("/v1/models")).json()
        assert models["data"][0]["limits"]["max_candidates"] == 0
        assert (await service.draw(score=False, num_candidates=1, min_similarity=None)).status_code == 200

    with_service(test)


def test_bounds_are_the_operators() -> None:
    async def test(service: Service) -> None:
        response = await service.draw(num_candidates=9)
        assert (response.status_code, response.json()["error"]) == (400, "num_candidates must be at most 8, got 9")
        models = (await service.client.get("/v1/models")).json()
        assert models["data"][0]["limits"]["max_candidates"] == 8

    with_service(test, **ENABLED)


@pytest.mark.parametrize(
    "fields",
    [
        *({"num_candidates": value} for value in (0, -1, 1.5, "2", True, None)),
        *({"min_similarity": value} for value in (-0.1, 1.1, "0.5", True)),
        *({"score": value} for value in (1, "yes", None)),
    ],
    ids=json.dumps,
)
def test_malformed_wishes_are_refused(fields: dict[str, Any]) -> None:
    async def test(service: Service) -> None:
        response = await service.draw(**fields)
        assert response.status_code == 400
        assert [problem["field"] for problem in response.json()["details"]["fields"]] == list(fields)

    with_service(test, **ENABLED)


def test_a_stage_that_is_out_of_reach_is_said_before_anything_is_drawn() -> None:
    async def test(service: Service) -> None:
        async def unreachable(job: IdentityJob) -> IdentityResult:
            raise StageUnavailableError("a stage can't be reached; try again shortly")

        service.stages.identity = unreachable
        response = await service.draw(score=True)
        assert (response.status_code, response.json()["type"]) == (503, "StageUnavailableError")
        assert service.stages.drawn == []
        assert (await service.draw()).status_code == 200, "who asks for no score needs no such stage"

    with_service(test, **ENABLED)


def test_candidates_of_two_requests_never_mix() -> None:
    async def test(service: Service) -> None:
        one = {5: 0.8, 6: 0.3, 7: 0.5, 8: 0.1}
        two = {5: 0.2, 6: 0.4, 7: 0.9, 8: 0.6}
        script = Script(service, one=one, two=two)
        bodies = (script.reference("one"), script.reference("two", picture_url((10, 200, 30))))
        answers = await asyncio.gather(
            *(service.draw(headers=JSON, **fields, seed=5, num_candidates=4) for fields in bodies * 3)
        )
        assert script.most_at_once > 4, "they overlapped"
        for answer, scores in zip(answers, (one, two) * 3, strict=True):
            assert candidates_of(answer) == scores
            assert answer.json()["seed"] == max(scores, key=lambda seed: scores[seed])

    with_service(test, **ENABLED)


@pytest.mark.parametrize("fields", [{"num_candidates": 4}, {"num_candidates": 4, "min_similarity": 0.9}])
@pytest.mark.parametrize("accept", ["image/jpeg", "text/event-stream"])
def test_who_leaves_frees_every_candidate(fields: dict[str, Any], accept: str) -> None:
    steps = HeldSteps()

    async def test(service: Service) -> None:
        script = Script(service, someone=dict.fromkeys(range(42, 46), 0.5))
        num_at_once = 1 if "min_similarity" in fields else 4
        changes = script.reference("someone") | fields | {"steps": 50}
        caller = Caller(service=service, accept=accept, changes=changes)
        engine = service.stages.engine
        await until(lambda: engine.stats().num_submitted == num_at_once)
        await steps.step(engine)
        caller.leave()
        await until(lambda: script.num_here == 0)
        await steps.step(engine)
        await steps.step(engine)
        await caller.ended()
        stats = engine.stats()
        assert (stats.num_cancelled, stats.num_running, stats.num_waiting) == (num_at_once, 0, 0)
        assert stats.is_conserved()
        assert stats.num_sample_steps <= 2 * num_at_once

    with_service(test, held=steps, **ENABLED)


def test_one_candidate_that_fails_ends_the_request_and_nothing_else() -> None:
    async def test(service: Service) -> None:
        draw = service.stages.draw

        async def poisoned(job: DrawJob, on_event: OnDrawEvent | None = None) -> DrawResult:
            if job.request.seed == 44:
                await until(lambda: service.stages.engine.stats().num_running == 3)
                raise NumericalError("the network produced infinite values for this request")
            return await draw(job, on_event)

        service.stages.draw = poisoned  # type: ignore[method-assign]
        script = Script(service, someone=dict.fromkeys(range(42, 46), 0.5))
        response = await service.draw(**script.reference("someone"), num_candidates=4, steps=100)
        assert (response.status_code, response.json()["type"]) == (500, "NumericalError")
        engine = service.stages.engine
        await until(lambda: not engine.has_work)
        assert (engine.stats().num_cancelled, engine.stats().num_finished) == (3, 0)
        assert engine.stats().is_conserved()
        assert (await service.draw()).status_code == 200

    with_service(test, **ENABLED)


def test_a_stream_tells_of_all_candidates_as_one_drawing() -> None:
    async def test(service: Service) -> None:
        script = Script(service, someone={42: 0.1, 43: 0.3, 44: 0.2})
        response = await service.draw(
            headers=EVENTS, **script.reference("someone"), num_candidates=3, steps=4, preview_every=1
        )
        events = events_of(response.text)
        assert [event.name for event in events] == ["queued", *["step"] * 12, "done"]
        steps = [event.data for event in events if event.name == "step"]
        assert [step["step"] for step in steps] == list(range(1, 13))
        assert {step["num_steps"] for step in steps} == {12}
        assert sum(step["preview"] is not None for step in steps) == 4, "of the first candidate alone"
        assert (events[-1].data["seed"], events[-1].data["face_similarity"]) == (43, 0.3)

    with_service(test, **ENABLED)


def test_seeds_of_candidates() -> None:
    async def test(service: Service) -> None:
        script = Script(service, someone={MAX_SEED: 0.1, 0: 0.2})
        response = await service.draw(headers=JSON, **script.reference("someone"), seed=MAX_SEED, num_candidates=2)
        assert candidates_of(response) == {MAX_SEED: 0.1, 0: 0.2}

        class AnySeed(dict[int, float]):
            def __missing__(self, seed: int) -> float:
                return 0.5

        script = Script(service, someone=AnySeed())
        response = await service.draw(headers=JSON, **script.reference("someone"), seed=-1, num_candidates=3)
        first, second, third = candidates_of(response)
        assert (second, third) == (first + 1, first + 2)
        assert response.json()["seed"] == first, "the first of equals"

    with_service(test, **ENABLED)


def test_every_candidate_is_charged_to_the_clients_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    # Who is given up is charged the time until then: none passes here.
    monkeypatch.setattr(ingress, "MeteredBackend", functools.partial(MeteredBackend, clock=lambda: 0.0))

    async def test(service: Service) -> None:
        script = Script(service, someone=dict.fromkeys(range(42, 50), 0.5))
        asked = script.reference("someone") | {"steps": 10}
        assert (await service.draw(**asked)).status_code == 200  # shows what one takes: 10 steps of 2 ms
        refused = await service.draw(**asked, num_candidates=8)
        assert (refused.status_code, refused.json()["type"]) == (429, "LimitReachedError")
        engine = service.stages.engine
        await until(lambda: not engine.has_work)
        assert engine.stats().num_finished == 1, "who can't have all gets none"
        assert engine.stats().is_conserved()
        assert (await service.draw(**asked, num_candidates=3)).status_code == 200

    with_service(test, **ENABLED, access={"limits": {"device_s": 0.15, "window_s": 3600.0}})


def test_the_real_network_chooses_the_picture_of_the_person() -> None:
    with Image.open(SHEET) as sheet:
        stranger = sheet.convert("RGB").crop((0, 0, 160, 160))
    pictures = {
        42: stranger,
        43: astronaut().transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        44: Image.new("RGB", (256, 256), (90, 90, 90)),
    }

    async def test(service: Service) -> None:
        draw = service.stages.draw
        stage = IdentityStage(lambda: DlibIdentity(YuNetDetector()), limits=ImageLimits(), cache_bytes=2**20)

        async def photographed(job: DrawJob, on_event: OnDrawEvent | None = None) -> DrawResult:
            result = await draw(job, on_event)
            return dataclasses.replace(result, data=saved(pictures[job.request.seed], "JPEG", quality=90))

        service.stages.draw = photographed  # type: ignore[method-assign]
        service.stages.identity = stage.identify
        reference = data_url(saved(astronaut(), "JPEG"), "image/jpeg")
        response = await service.draw(headers=JSON, reference_image=reference, num_candidates=3)
        scores = candidates_of(response)
        assert response.json()["seed"] == 43
        assert scores[43] is not None and scores[43] > 0.75
        assert scores[42] is not None and scores[42] < 0.5
        assert scores[44] is None

    with_service(test, **ENABLED)
