"""The glue between Serve and the decision: what replicas report, how it adds up, and that nothing breaks Serve."""

from __future__ import annotations

import datetime
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from ray import cloudpickle
from ray.serve._private.common import TimeStampedValue
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve_app.metrics.recorder import Recorder
from serve_app.scaling.load import BUSY, NUM_REQUESTS, OWED_S, REQUEST_S, LoadReporter, WorkClock
from serve_app.scaling.policy import WorkPolicy, logger
from serve_app.scaling.settings import POLICY, ScalingSettings

KWARGS: dict[str, Any] = {
    "may_owe_s": 10.0,
    "cold_start_s": 0.0,
    "hold_s": 0.0,
    "idle_to_zero_s": 60.0,
    "request_s": 4.0,
}


def context(
    replicas: dict[str, dict[str, float]] | None = None, *, queued: float = 0.0, **changes: Any
) -> AutoscalingContext:
    """What Serve hands over, with the last report of every replica; requests at handles come on top."""
    raw: dict[str, Any] = {}
    for replica, report in (replicas or {}).items():
        for name, value in report.items():
            raw.setdefault(name, {})[replica] = [TimeStampedValue(0.0, 0.0), TimeStampedValue(1.0, value)]
    num_placed = sum(report[NUM_REQUESTS] for report in (replicas or {}).values())
    fields: dict[str, Any] = {
        "deployment_id": None,
        "deployment_name": "FluxReplica",
        "app_name": "likeness",
        "current_num_replicas": len(replicas or {}),
        "target_num_replicas": len(replicas or {}),
        "running_replicas": [],
        "total_num_requests": num_placed + queued,
        "total_queued_requests": queued,
        "aggregated_metrics": {},
        "raw_metrics": raw,
        "capacity_adjusted_min_replicas": 0,
        "capacity_adjusted_max_replicas": 16,
        "policy_state": {},
        "last_scale_up_time": None,
        "last_scale_down_time": None,
        "current_time": 0.0,
        "config": None,
    }
    return AutoscalingContext(**(fields | changes))


def report(owed_s: float, num_requests: int = 9, request_s: float = 0.0) -> dict[str, float]:
    return {OWED_S: owed_s, BUSY: 0.0, NUM_REQUESTS: float(num_requests), REQUEST_S: request_s}


OPEN_RECORDER = "serve_app.scaling.policy.open_recorder"


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nowhere to report to."""
    monkeypatch.setattr(OPEN_RECORDER, lambda app_name: Recorder())


class Lines(logging.Handler):
    """The scaling lines that were logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(record.getMessage()) for record in self.records]


@pytest.fixture
def log() -> Iterator[Lines]:
    handler, level = Lines(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_work_of_all_replicas_and_of_requests_without_one_adds_up() -> None:
    policy = WorkPolicy(**KWARGS)
    assert policy(context({"a": report(20.0), "b": report(15.0)})) == (4, {})
    assert policy(context({"a": report(20.0), "b": report(15.0)}, queued=5))[0] == 6, "5 × 4 s more"
    assert policy(context({"a": report(20.0, request_s=2.0), "b": report(15.0)}, queued=5))[0] == 5, "5 × 2 s more"


def test_requests_that_a_replica_has_just_taken_are_not_counted_twice() -> None:
    """Serve's counts are averages of the last seconds, a replica's report is of now."""
    lagging = context({"a": report(40.0, num_requests=10)}, total_queued_requests=9.0, total_num_requests=10.0)
    assert WorkPolicy(**KWARGS)(lagging)[0] == 4


def test_what_requests_take_is_remembered_when_no_replica_is_left() -> None:
    policy = WorkPolicy(**KWARGS)
    policy(context({"a": report(0.0, num_requests=0, request_s=30.0)}))
    assert policy(context({}, queued=2))[0] == 2, "2 × 30 s, and no more than requests"


def test_a_change_is_one_line_and_one_count(log: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(OPEN_RECORDER, lambda app_name: recorder)
    policy = WorkPolicy(**KWARGS)
    for target in (1, 1, 4, 4):  # Serve may take its time to follow
        policy(context({"a": report(35.0)}, target_num_replicas=target))
    (line,) = log.lines
    assert line == {
        "event": "scaling",
        "deployment": "FluxReplica",
        "application": "likeness",
        "from": 1,
        "to": 4,
        "running": 1,
        "cause": "work",
        "reason": line["reason"],
        "owed_s": 35.0,
        "arriving": 0.0,
    }
    assert "35.0 s of work are owed" in line["reason"]
    counted = recorder.report()
    assert counted.totals == {("scaling_decisions", ("FluxReplica", "work", "up")): (1.0,)}
    assert counted.gauges["scaling_wanted_replicas", ("FluxReplica",)] == (4.0,)


def test_what_it_cannot_read_leaves_things_as_they_are(log: Lines) -> None:
    """An exception would leave the application deploying for ever."""
    broken = context({"a": report(1.0), "b": report(1.0), "c": report(1.0)}, total_queued_requests=None)
    assert WorkPolicy(**KWARGS)(broken) == (3, {})
    assert [record.levelname for record in log.records] == ["ERROR"]


def test_settings_that_make_no_sense_break_nothing(log: Lines) -> None:
    """An exception would leave Serve's controller unable to tell its status."""
    policy = WorkPolicy(**KWARGS | {"may_ow_s": 1.0})
    assert policy(context({"a": report(500.0)}, target_num_replicas=2)) == (2, {})
    assert [record.levelname for record in log.records] == ["ERROR"]


def test_settings_change_while_it_decides_and_what_it_remembers_stays(
    monkeypatch: pytest.MonkeyPatch, log: Lines
) -> None:
    changes: dict[str, Any] = {}
    monkeypatch.setattr("serve_app.scaling.live.changes_for", lambda *_: changes)
    monkeypatch.setattr("serve_app.scaling.policy.LOOK_EVERY_S", 0.0)
    policy = WorkPolicy(**KWARGS | {"hold_s": 60.0})
    assert policy(context({"a": report(35.0)}))[0] == 4
    changes = {"may_owe_s": 5.0}
    assert policy(context({"a": report(35.0)}))[0] == 7
    changes = {"may_owe_s": 0.0}
    assert policy(context({"a": report(35.0)}))[0] == 7, "what can't be used changes nothing"
    assert [record.levelname for record in log.records].count("ERROR") == 1
    changes = {"may_owe_s": 100.0}
    assert policy(context({"a": report(35.0)}))[0] == 7, "held: it was wanted a moment ago"


def test_a_decision_that_can_not_be_counted_counts_all_the_same(monkeypatch: pytest.MonkeyPatch, log: Lines) -> None:
    def broken(*_: object) -> None:
        raise OSError("no ledger")

    monkeypatch.setattr("serve_app.scaling.policy.ScalingMetrics.decided", broken)
    assert WorkPolicy(**KWARGS)(context({"a": report(35.0)})) == (4, {})
    assert [record.levelname for record in log.records] == ["ERROR"]


def test_serve_accepts_it_and_can_send_it_to_its_controller() -> None:
    config = AutoscalingConfig(max_replicas=2, policy={"policy_function": POLICY, "policy_kwargs": KWARGS})
    travelled = cloudpickle.loads(cloudpickle.dumps(config.policy.get_policy()))
    assert travelled(**config.policy.policy_kwargs)(context({"a": report(35.0)})) == (4, {})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"may_owe": 1.0}, "unknown key 'may_owe'; did you mean 'may_owe_s'?"),
        ({"time_zone": "Europe/Atlantis"}, "unknown time zone 'Europe/Atlantis'"),
        ({"warm_hours": [{"num_replicas": 1, "start": 1200}]}, 'a time of day in quotes, like "08:00", got 1200'),
        ({"warm_hours": [{"num_replicas": 1, "end": "24:00"}]}, "a time of day in quotes"),
        ({"warm_hours": [{"num_replicas": 1, "days": ["monday"]}]}, "days"),
        ({"hold_s": 61.0}, "idle_to_zero_s must be at least hold_s"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ScalingSettings.model_validate(KWARGS | changes)
    assert says in str(caught.value)


def test_settings_become_rules() -> None:
    hours = {"num_replicas": 2, "days": ["mon"], "start": "08:00", "end": "20:00"}
    rules = ScalingSettings.model_validate(KWARGS | {"warm_hours": [hours], "time_zone": "Europe/Berlin"}).rules()
    assert rules.warm_hours[0].start == datetime.time(8)
    assert str(rules.time_zone) == "Europe/Berlin"


# -- what replicas report ---------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_an_engines_counters_become_a_report() -> None:
    clock = Clock()
    reporter = LoadReporter(clock)
    clock.now_s += 10.0
    first = reporter.report(owed_s=12.0, done_s=5.0, num_requests=3, num_done=2)
    assert first == {OWED_S: 12.0, BUSY: 0.5, NUM_REQUESTS: 3.0, REQUEST_S: 2.5}
    clock.now_s += 10.0
    assert reporter.report(owed_s=0.0, done_s=5.0, num_requests=0, num_done=2)[BUSY] == 0.0
    assert {type(value) for value in first.values()} == {float}


def test_a_step_that_ends_between_two_reports_is_no_more_than_busy() -> None:
    clock = Clock()
    reporter = LoadReporter(clock)
    clock.now_s += 1.0
    assert reporter.report(owed_s=1.0, done_s=3.0, num_requests=1, num_done=0)[BUSY] == 1.0
    assert reporter.report(owed_s=1.0, done_s=3.0, num_requests=1, num_done=0)[BUSY] == 0.0, "no time has passed"


def test_overlapping_requests_share_the_time_they_take() -> None:
    clock = Clock()
    work = WorkClock(clock)
    with work.working():
        clock.now_s += 2.0
        with work.working():
            clock.now_s += 2.0
            during = work.report()
    clock.now_s += 4.0
    after = work.report()
    assert during == {OWED_S: 0.0, BUSY: 1.0, NUM_REQUESTS: 2.0, REQUEST_S: 0.0}, "none has ended: nothing is known"
    assert after == {OWED_S: 0.0, BUSY: 0.0, NUM_REQUESTS: 0.0, REQUEST_S: 2.0}, "4 s for two"


def test_work_that_fails_counts_as_work() -> None:
    clock = Clock()
    work = WorkClock(clock)
    with pytest.raises(RuntimeError, match="broken"), work.working():
        clock.now_s += 1.0
        raise RuntimeError("broken")
    assert work.report()[REQUEST_S] == 1.0
    assert work.report()[NUM_REQUESTS] == 0.0


def test_requests_of_many_threads_are_counted() -> None:
    work = WorkClock()

    def many() -> None:
        for _ in range(200):
            with work.working():
                pass

    threads = [threading.Thread(target=many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert work.report()[NUM_REQUESTS] == 0.0
