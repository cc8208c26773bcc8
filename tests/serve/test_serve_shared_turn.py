"""One turn for many processes, on a real Ray: one at a time, and nobody who died or gave up keeps it."""

from __future__ import annotations

import asyncio
import secrets

import pytest
from ray.exceptions import RaySystemError

from serve_app.shared_turn import SharedTurn, internal_kv

pytestmark = [pytest.mark.serve, pytest.mark.usefixtures("serve_port")]


@pytest.fixture
def name() -> str:
    return f"test-{secrets.token_hex(4)}"


def living() -> tuple[str, object]:
    """Id and handle of an actor."""
    import ray

    actor = ray.remote(num_cpus=0)(type("Holder", (), {"ping": lambda self: None})).remote()
    ray.get(actor.ping.remote())
    return actor._actor_id.hex(), actor


def test_one_at_a_time_goes_on(name: str) -> None:
    owners = [living() for _ in range(2)]
    inside: list[str] = []

    async def visit(turn: SharedTurn, owner: str) -> None:
        async with turn:
            inside.append(owner)
            await asyncio.sleep(0.01)
            assert inside == [owner]
            inside.remove(owner)

    async def test() -> None:
        turns = [(SharedTurn(name, owner=owner), owner) for owner, _ in owners]
        await asyncio.wait_for(asyncio.gather(*(visit(*turn) for turn in turns * 5)), 60)

    asyncio.run(test())


def test_who_gives_up_or_fails_does_not_keep_it(name: str) -> None:
    holder, other = living(), living()

    async def test() -> None:
        mine, theirs = SharedTurn(name, owner=holder[0]), SharedTurn(name, owner=other[0])
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


def test_the_turn_of_one_that_died_is_the_next_ones(name: str) -> None:
    import ray

    holder, other = living(), living()

    async def test() -> None:
        dies = SharedTurn(name, owner=holder[0])
        await dies.__aenter__()
        ray.kill(holder[1])
        async with asyncio.timeout(30), SharedTurn(name, owner=other[0]):
            pass

    asyncio.run(test())


def test_without_the_store_each_has_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise RaySystemError("no store")

    for call in ("_internal_kv_put", "_internal_kv_get"):
        monkeypatch.setattr(internal_kv, call, unreachable)

    async def test() -> None:
        async with asyncio.timeout(30), SharedTurn(name, owner="a"), SharedTurn(name, owner="b"):
            pass

    asyncio.run(test())
