"""Requests under which replicas die: run again so often and no more, told from those that were only beside them."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError

from engine.request import ImageRequest, Reference, StageSeconds
from serve_app import ray_backend
from serve_app.error_answers import describe
from serve_app.errors import QuarantinedError
from serve_app.quarantine import MAX_DEATHS, QUARANTINE_S, Quarantine, ReplicaDiedError, drawing_of
from serve_app.ray_backend import RayBackend
from serve_app.stages import (
    FLUX_REPLICA,
    DrawEvent,
    DrawJob,
    DrawRestarted,
    DrawResult,
    FaceJob,
    FacePolicy,
    FaceResult,
    PictureEncoding,
)
from tests.test_access_limits import Clock

REQUEST = ImageRequest(request_id="a", prompt="a portrait", width_px=64, height_px=64, num_steps=2)
REFERENCE = Reference(embedding=np.zeros(8, np.float32), key="face")


async def run(
    quarantine: Quarantine, name: str, *, dies: bool, while_at_work: Callable[[], Any] = lambda: None
) -> None:
    """One run that ends as told."""
    async with quarantine.run(name):
        await asyncio.sleep(0)
        if dies:
            raise ReplicaDiedError


def test_three_deaths_end_it_and_the_same_again_is_not_run() -> None:
    async def test() -> None:
        clock = Clock()
        quarantine = Quarantine(clock=clock)
        for _ in range(MAX_DEATHS - 1):
            with pytest.raises(ReplicaDiedError):
                await run(quarantine, "guilty", dies=True)
        with pytest.raises(QuarantinedError, match=r"3 replicas ended .* for the next 5 minutes"):
            await run(quarantine, "guilty", dies=True)
        with pytest.raises(QuarantinedError):
            await run(quarantine, "guilty", dies=False)
        await run(quarantine, "other", dies=False)
        clock.now_s += QUARANTINE_S
        await run(quarantine, "guilty", dies=False)

    asyncio.run(test())


def test_a_success_is_an_acquittal_and_nothing_else_is() -> None:
    async def test() -> None:
        quarantine = Quarantine(clock=Clock())
        for _ in range(5):
            for _ in range(MAX_DEATHS - 1):
                with pytest.raises(ReplicaDiedError):
                    await run(quarantine, "unlucky", dies=True)
            await run(quarantine, "unlucky", dies=False)
        for error in (asyncio.CancelledError, ZeroDivisionError):
            with pytest.raises(ReplicaDiedError):
                await run(quarantine, "gone", dies=True)
            with pytest.raises(error):
                async with quarantine.run("gone"):
                    raise error
        with pytest.raises(QuarantinedError):
            await run(quarantine, "gone", dies=True)

    asyncio.run(test())


def test_copies_at_work_together_count_one_death() -> None:
    async def test() -> None:
        quarantine = Quarantine(clock=Clock())
        ends = await asyncio.gather(*(run(quarantine, "copy", dies=True) for _ in range(20)), return_exceptions=True)
        assert {type(end) for end in ends} == {ReplicaDiedError}
        await run(quarantine, "copy", dies=False)

    asyncio.run(test())


@dataclasses.dataclass
class House:
    """Replicas that die with everybody in them when somebody guilty works there."""

    guilty: frozenset[str]
    num_replicas: int
    random: random.Random
    num_deaths: int = 0
    inside: dict[int, set[str]] = dataclasses.field(default_factory=dict)

    async def draw(self, name: str) -> None:
        place = self.random.randrange(self.num_replicas)
        company = self.inside.setdefault(place, set())
        company.add(name)
        for _ in range(3):
            await asyncio.sleep(0)
        is_dead = bool(self.guilty & company)
        await asyncio.sleep(0)
        if self.inside.get(place) is company:
            del self.inside[place]
            self.num_deaths += is_dead
        if is_dead:
            raise ReplicaDiedError


@pytest.mark.parametrize("num_replicas", [1, 2, 5])
@pytest.mark.parametrize("num_guilty", [1, 3])
@pytest.mark.parametrize("num_doors", [1, 2])
def test_the_guilty_end_and_everybody_beside_them_is_served(num_replicas: int, num_guilty: int, num_doors: int) -> None:
    async def until_it_lives(quarantine: Quarantine, house: House, name: str) -> str:
        while True:
            try:
                async with quarantine.run(name):
                    await house.draw(name)
                return "served"
            except ReplicaDiedError:
                continue
            except QuarantinedError:
                return "quarantined"

    async def test() -> None:
        names = [f"innocent{n}" for n in range(20)] + [f"guilty{n}" for n in range(num_guilty)]
        house = House(
            guilty=frozenset(n for n in names if "guilty" in n), num_replicas=num_replicas, random=random.Random(7)
        )
        turn = asyncio.Lock()
        doors = [Quarantine(clock=Clock(), turn=turn) for _ in range(num_doors)]
        of = {name: doors[index % num_doors] for index, name in enumerate(names)}
        for _ in range(4):  # callers that don't give up
            ends = await asyncio.gather(*(until_it_lives(of[name], house, name) for name in names))
            assert ends == ["served"] * 20 + ["quarantined"] * num_guilty
        assert house.num_deaths <= MAX_DEATHS * num_guilty, "however often they come back"

    asyncio.run(test())


def test_it_is_the_same_picture_whoever_asks_and_when() -> None:
    request = dataclasses.replace(REQUEST, reference=REFERENCE)
    same = [
        dataclasses.replace(request, request_id="b"),
        dataclasses.replace(request, seed=7),
        dataclasses.replace(request, max_wait_s=3.0, priority=2),
        dataclasses.replace(request, preview_every=2),
        dataclasses.replace(request, reference=Reference(embedding=np.ones(8, np.float32), key="face")),
    ]
    other = [
        dataclasses.replace(request, prompt="another"),
        dataclasses.replace(request, num_steps=3),
        dataclasses.replace(request, reference=dataclasses.replace(REFERENCE, key="other")),
        dataclasses.replace(request, reference=None),
    ]
    assert {drawing_of(one) for one in same} == {drawing_of(request)}
    assert len({drawing_of(one) for one in [request, *other]}) == 5
    assert "portrait" not in drawing_of(request)


RESULT = DrawResult(
    data=b"picture",
    drawn_width_px=64,
    drawn_height_px=64,
    stages=StageSeconds(),
    compress_s=0.0,
    device_s=1.0,
    device_name="CPU",
)

PREPARED = FaceResult(
    reference=REFERENCE,
    provider="CPU",
    box=None,
    warning="",
    width_px=64,
    height_px=64,
    is_cached=False,
    elapsed_s=0.0,
)


class Handle:
    """A deployment's handle whose replica dies so often before it answers."""

    def __init__(self, num_deaths: int, answer: Any = RESULT) -> None:
        self.num_deaths = num_deaths
        self.answer = answer
        self.jobs: list[Any] = []

    def options(self, **_: Any) -> Handle:
        return self

    def __getattr__(self, method: str) -> Any:
        return self

    def remote(self, *jobs: Any) -> Any:
        self.jobs += jobs
        return Response(self._end)

    def _end(self) -> Any:
        if len(self.jobs) <= self.num_deaths:
            raise RayActorError
        return self.answer


@dataclasses.dataclass
class Response:
    """What a call gives: awaited, or followed to its last event."""

    end: Callable[[], Any]

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return self.end()

    async def __aiter__(self) -> AsyncIterator[Any]:
        yield self.end()


def with_backend(
    flux: Handle, face: Handle, test: Callable[[RayBackend, list[str]], Coroutine[Any, Any, None]]
) -> None:
    async def run() -> None:
        replays: list[str] = []
        backend = RayBackend(face_stage=face, flux_replica=flux, app_name="app", on_replay=replays.append)
        await test(backend, replays)

    asyncio.run(run())


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between runs."""
    monkeypatch.setattr(ray_backend, "REPLAY_PAUSE_S", 0.0)


JOB = DrawJob(request=REQUEST, encoding=PictureEncoding(format="png", quality=100))


@pytest.mark.parametrize("is_followed", [False, True])
@pytest.mark.parametrize("num_deaths", [0, 1, 2])
def test_a_picture_survives_two_deaths(num_deaths: int, is_followed: bool) -> None:
    flux, events = Handle(num_deaths), list[DrawEvent]()

    async def test(backend: RayBackend, replays: list[str]) -> None:
        assert await backend.draw(JOB, events.append if is_followed else None) == RESULT
        assert replays == [FLUX_REPLICA] * num_deaths
        assert len({job.request.request_id for job in flux.jobs}) == num_deaths + 1, "each run has its own id"
        assert {dataclasses.replace(job.request, request_id="") for job in flux.jobs} == {
            dataclasses.replace(REQUEST, request_id="")
        }
        assert events == [DrawRestarted()] * (num_deaths if is_followed else 0)

    with_backend(flux, Handle(0), test)


def test_a_third_death_is_the_end_and_a_retry_reaches_no_replica() -> None:
    flux = Handle(10)

    async def test(backend: RayBackend, replays: list[str]) -> None:
        for seed in range(5):
            with pytest.raises(QuarantinedError) as caught:
                await backend.draw(dataclasses.replace(JOB, request=dataclasses.replace(REQUEST, seed=seed)))
        assert len(flux.jobs) == MAX_DEATHS
        assert replays == [FLUX_REPLICA] * 2
        reply = describe(caught.value, request_id="abc")
        assert (reply.status, reply.type_name) == (500, "QuarantinedError")
        assert "Retry-After" not in reply.headers, "clients would send it again"
        flux.num_deaths = 0
        assert (
            await backend.draw(dataclasses.replace(JOB, request=dataclasses.replace(REQUEST, prompt="another")))
            == RESULT
        )

    with_backend(flux, Handle(0), test)


def test_a_reference_that_kills_the_face_stage_is_quarantined_too() -> None:
    face = Handle(10, PREPARED)

    async def test(backend: RayBackend, replays: list[str]) -> None:
        job = FaceJob(data=b"poison", media_type="image/png", policy="prefer", provider="CPU")
        policies: tuple[FacePolicy, ...] = ("prefer", "ignore", "require")
        for policy in policies:
            with pytest.raises(QuarantinedError):
                await backend.prepare(dataclasses.replace(job, policy=policy))
        assert len(face.jobs) == MAX_DEATHS
        face.num_deaths = 0
        assert await backend.prepare(dataclasses.replace(job, data=b"a face")) == PREPARED

    with_backend(Handle(0), face, test)
