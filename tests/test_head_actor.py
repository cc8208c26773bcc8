"""An actor that went away while it was looked for: whoever needs it goes on, and finds the next one. No Ray."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayError

from serve_app.head_actor import head_actor
from serve_app.metrics import table
from serve_app.metrics.ray_ledger import RayLedger, Reporter
from serve_app.metrics.recorder import Recorder, Report


class LostOnce:
    """Stands for ``ray.remote(…).options(…)``: the first look for the actor fails as Ray lets it fail."""

    def __init__(self, found: Any) -> None:
        self._found = found
        self._num_looks = 0

    def options(self, **_: object) -> LostOnce:
        return self

    def remote(self, *_: object) -> Any:
        self._num_looks += 1
        if self._num_looks == 1:
            raise ValueError("Failed to look up actor with name 'ledger'.")
        return self._found


def test_an_actor_that_is_lost_is_an_error_of_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = LostOnce("handle")
    monkeypatch.setattr(ray, "remote", lambda _: actors)
    with pytest.raises(RayError, match="limits can't be found"):
        head_actor(object, "limits")
    assert head_actor(object, "limits") == "handle"


def test_a_replica_that_did_not_find_the_ledger_reports_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Report] = []
    is_there = threading.Event()

    def take(report: Report) -> None:
        taken.append(report)
        is_there.set()

    actors = LostOnce(SimpleNamespace(take=SimpleNamespace(remote=take)))
    monkeypatch.setattr(ray, "remote", lambda _: actors)
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    recorder = Recorder("replica")
    reporter = Reporter(recorder, RayLedger("app").take)
    reporter.start()
    recorder.add(table.RECEIVED)
    assert is_there.wait(20.0)
    reporter.close(20.0)
    assert taken[-1].totals[table.RECEIVED.name, ()] == (1.0,)
