"""One turn for many processes, on a real Ray: one at a time, and nobody who died or gave up keeps it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from ray._private import state
from ray.exceptions import RaySystemError
from ray.experimental import internal_kv

from serve_app.shared_turn import SharedTurn
from tests.serve.conftest import until

pytestmark = [pytest.mark.serve, pytest.mark.usefixtures("serve_port")]


@pytest.fixture
def name() -> str:
    return f"test-{secrets.token_hex(4)}"


class Replica:
    """An actor that does nothing."""

    def ping(self) -> None:
        """Answers once it lives."""


@pytest.fixture
def replicas(name: str) -> Iterator[list[Any]]:
    """Three actors that live."""
    import ray

    each = ray.remote(Replica)
    actors = [each.options(num_cpus=0, lifetime="detached", name=f"{name} {n}").remote() for n in range(3)]
    ray.get([actor.ping.remote() for actor in actors], timeout=60)
    yield actors
    for actor in actors:
        ray.kill(actor)


def turn_of(actor: Any, name: str) -> SharedTurn:
    return SharedTurn(name, owner=actor._actor_id.hex())


def test_one_at_a_time_goes_on(name: str, replicas: list[Any]) -> None:
    inside: list[SharedTurn] = []

    async def visit(turn: SharedTurn) -> None:
        async with turn:
            inside.append(turn)
            await asyncio.sleep(0.01)
            assert inside == [turn]
            inside.remove(turn)

    async def test() -> None:
        turns = [turn_of(replica, name) for replica in replicas]
        await asyncio.wait_for(asyncio.gather(*(visit(turn) for turn in turns * 3)), 60)

    asyncio.run(test())


def test_who_gives_up_or_fails_does_not_keep_it(name: str, replicas: list[Any]) -> None:
    async def test() -> None:
        mine, theirs = (turn_of(replica, name) for replica in replicas[:2])
        with pytest.raises(ZeroDivisionError):
            async with theirs:
                raise ZeroDivisionError
        async with mine:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(theirs.__aenter__(), 0.5)
        for turn in (theirs, mine):
            async with asyncio.timeout(30), turn:
                pass

    asyncio.run(test())


def test_the_turn_of_one_that_died_is_the_next_ones(name: str, replicas: list[Any]) -> None:
    import ray

    async def test() -> None:
        dies, lives = (turn_of(replica, name) for replica in replicas[:2])
        await dies.__aenter__()
        ray.kill(replicas[0])
        async with asyncio.timeout(30), lives:
            pass

    asyncio.run(test())


def test_of_two_who_find_the_same_one_dead_one_goes_on(
    name: str, replicas: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    dies, slow, quick = (turn_of(replica, name) for replica in replicas)
    state_of, deaths = state.actors, list[str]()

    def overtaken(actor_id: str) -> dict[str, Any]:
        """Between what the slow one sees and what it does about it, the quick one goes on."""
        found: dict[str, Any] = state_of(actor_id)
        if found.get("State") != "ALIVE" and not deaths:
            deaths.append(actor_id)
            until(quick._take)
        return found

    assert dies._take()
    ray.kill(replicas[0])
    monkeypatch.setattr(state, "actors", overtaken)
    until(lambda: slow._take() or deaths)
    assert [slow._take() for _ in range(3)] == [False] * 3, "the quick one has it"
    quick._give_back()
    assert slow._take()
    newcomer = turn_of(replicas[2], name)
    assert [newcomer._take() for _ in range(3)] == [False] * 3, "who comes anew finds the same owner"


def test_without_the_store_each_has_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise RaySystemError("no store")

    for call in ("_internal_kv_put", "_internal_kv_get"):
        monkeypatch.setattr(internal_kv, call, unreachable)

    async def test() -> None:
        async with asyncio.timeout(30), SharedTurn(name, owner="a"), SharedTurn(name, owner="b"):
            pass

    asyncio.run(test())
