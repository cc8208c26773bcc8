"""Before a request is refused a second replica is asked, seldom; and the caller is told when to return."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from engine.errors import EngineBusyError, NumericalError
from serve_app.room import MAX_RETRY_AFTER_S, MIN_RETRY_AFTER_S, Room
from serve_app.second_try import MAX_SAVED, SHARE, SecondTry
from tests.asgi import Service, until, with_service


class Replicas:
    """Answers calls in the order of a list: an error is raised, all else returned."""

    def __init__(self, answers: Sequence[object]) -> None:
        self.left = list(answers)

    async def call(self) -> object:
        answer = self.left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def run(second_try: SecondTry, *answers: object) -> object:
    replicas = Replicas(answers)
    try:
        return asyncio.run(second_try.run(replicas.call))
    finally:
        assert not replicas.left


def busy(retry_after_s: float = 5.0) -> EngineBusyError:
    return EngineBusyError(f"again in {retry_after_s}", retry_after_s)


def test_a_refusal_is_offered_to_one_more() -> None:
    assert run(SecondTry(), busy(), "picture") == "picture"
    assert run(SecondTry(), "picture") == "picture"


@pytest.mark.parametrize("waits_s", [(9.0, 4.0), (4.0, 9.0)])
def test_refused_twice_is_the_sooner_of_both(waits_s: tuple[float, float]) -> None:
    with pytest.raises(EngineBusyError) as caught:
        run(SecondTry(), *(busy(wait_s) for wait_s in waits_s))
    assert caught.value.retry_after_s == 4.0


def test_only_refusals_are_tried_again() -> None:
    for answers in ([NumericalError("infinite")], [busy(), NumericalError("infinite")]):
        with pytest.raises(NumericalError):
            run(SecondTry(), *answers)


def test_where_all_are_full_second_tries_end_and_come_back_with_those_that_are_taken() -> None:
    second_try = SecondTry()
    for _ in range(int(MAX_SAVED)):
        with pytest.raises(EngineBusyError):
            run(second_try, busy(), busy())
    with pytest.raises(EngineBusyError):
        run(second_try, busy())
    for _ in range(round(1.0 / SHARE)):
        run(second_try, "picture")
    assert run(second_try, busy(), "picture") == "picture"


def test_room_comes_as_often_as_somebody_leaves() -> None:
    room = Room()
    for _ in range(40):
        room.enter()
    for _ in range(20):
        room.leave(40.0)
        room.enter()
    assert room.retry_after_s == pytest.approx(1.0), "40 that stay 40 s: one leaves each second"
    for _ in range(39):
        room.leave(None)  # refused, or gone: they say nothing of the others
    assert room.retry_after_s == pytest.approx(40.0)
    for _ in range(99):
        room.leave(1e6)
        room.enter()
    assert room.retry_after_s == MAX_RETRY_AFTER_S
    for _ in range(199):
        room.leave(0.0)
        room.enter()
    assert room.retry_after_s == MIN_RETRY_AFTER_S
    assert Room().retry_after_s >= MIN_RETRY_AFTER_S


def test_one_too_many_is_refused_at_once_and_told_when_to_return() -> None:
    async def test(service: Service) -> None:
        engine = service.stages.engine
        assert (await service.draw()).status_code == 200
        here = [asyncio.create_task(service.draw(steps=100)) for _ in range(2)]
        await until(lambda: engine.stats().num_running == 2)
        response = await service.draw()
        assert (response.status_code, response.json()["type"]) == (429, "TooManyRequestsError")
        assert response.headers["retry-after"] == "1"
        assert response.json()["details"]["retry_after_s"] == MIN_RETRY_AFTER_S
        assert {(await drawing).status_code for drawing in here} == {200}
        assert engine.stats().num_submitted == 3

    with_service(test, limits={"max_in_flight": 2})
