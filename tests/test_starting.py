"""What callers are told of a stage that has no replica yet."""

from __future__ import annotations

import asyncio

from serve_app.stages import FACE_STAGE, FLUX_REPLICA, StageStarting, StageStatus
from serve_app.starting import StartingWatch


class Stages:
    """Two stages whose readiness a test sets, and a clock that it moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.ready = {FACE_STAGE: True, FLUX_REPLICA: True}
        self.watch = StartingWatch(self.statuses, clock=lambda: self.now_s)

    async def statuses(self) -> tuple[StageStatus, ...]:
        return tuple(StageStatus(name=name, is_ready=is_ready) for name, is_ready in self.ready.items())

    def look(self, at_s: float, **ready: bool) -> StageStarting | None:
        self.now_s = at_s
        self.ready |= ready
        return asyncio.run(self.watch.starting())


def test_nothing_is_told_while_all_are_ready() -> None:
    assert Stages().look(100.0) is None


def test_the_wait_counts_from_the_first_look_and_the_last_start_says_how_long_it_takes() -> None:
    stages = Stages()
    first = stages.look(100.0, FluxReplica=False)
    assert first == StageStarting(stage=FLUX_REPLICA, elapsed_s=0.0, expected_s=None)
    later = stages.look(130.0)
    assert later is not None
    assert (later.elapsed_s, later.expected_s) == (30.0, None)
    assert stages.look(190.0, FluxReplica=True) is None
    again = stages.look(500.0, FluxReplica=False)
    assert again is not None
    assert (again.elapsed_s, again.expected_s) == (0.0, 90.0)


def test_the_first_stage_on_the_road_is_the_one_to_wait_for() -> None:
    stages = Stages()
    both = stages.look(100.0, FaceStage=False, FluxReplica=False)
    assert both is not None
    assert both.stage == FACE_STAGE
    one = stages.look(110.0, FaceStage=True)
    assert one is not None
    assert (one.stage, one.elapsed_s) == (FLUX_REPLICA, 10.0)
