"""Measured faces through a real Ray: the fourth stage deployed, asked by the ingress, and killed.

A fake engine draws no faces, so nothing it draws is alike; that references are measured shows in what is refused.
"""

from __future__ import annotations

import os
import signal

import pytest

from serve_app.stages import IDENTITY_STAGE
from tests.asgi import picture_url
from tests.serve.conftest import RunningService, until

pytestmark = pytest.mark.serve


def test_references_and_candidates_are_measured(service: RunningService) -> None:
    stages = service.client.get("/ready").json()["stages"]
    assert IDENTITY_STAGE in [stage["name"] for stage in stages if stage["is_ready"]]
    best = service.draw(num_candidates=3, seed=7)
    assert (best.status_code, best.headers["x-candidates"]) == (200, "7=none, 8=none, 9=none")
    assert best.headers["x-seed"] == "7"
    faceless = service.draw(num_candidates=3, reference_image=picture_url())
    assert (faceless.status_code, faceless.json()["type"]) == (400, "FaceNotFoundError")


def test_a_bar_out_of_reach(service: RunningService) -> None:
    refused = service.draw(num_candidates=2, min_similarity=0.0)
    assert (refused.status_code, refused.json()["type"]) == (422, "SimilarityNotReachedError")
    assert [one["seed"] for one in refused.json()["details"]["candidates"]] == [42, 43]
    assert float(refused.headers["x-cost-usd"]) > 0.0


def test_a_killed_stage_comes_back_and_harms_nobody_else(service: RunningService) -> None:
    pid = service.replica_pid(IDENTITY_STAGE)
    os.kill(pid, signal.SIGKILL)
    assert service.draw().status_code == 200, "who asks for no score does not notice"
    until(lambda: service.draw(score=True).status_code == 200)
    assert service.replica_pids(IDENTITY_STAGE).isdisjoint({pid})
