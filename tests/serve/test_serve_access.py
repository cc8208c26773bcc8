"""The door through real HTTP: keys, limits that several ingress replicas share, and what the logs hold."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.access.keys import digest_of, new_key
from serve_app.access.limiter import Refusal
from serve_app.access.settings import ClientLimits
from serve_app.one_thread import OneThread
from serve_app.stages import FLUX_REPLICA
from tests.asgi import URL, body, data_url, picture
from tests.serve.conftest import DEFAULTS, DeployService, RunningService, until

pytestmark = pytest.mark.serve

KEY, DISABLED = new_key(), new_key()
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def guarded(deploy_service: DeployService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """The application with one client, who may have two requests at work; nobody measures faces."""
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys = f'{{ sha256 = "{digest_of(KEY).hex()}" }}, {{ sha256 = "{digest_of(DISABLED).hex()}", disabled = true }}'
    path.write_text(f'[[client]]\nname = "studio"\nkeys = [{keys}]\n')
    access = {"key_file": str(path), "limits": {"max_concurrent": 2}, "open_paths": ["/metrics"]}
    yield deploy_service(DEFAULTS | {"access": access, "identity": {"enabled": False}})


def test_keys_count_through_real_http(guarded: RunningService) -> None:
    refused = guarded.draw()
    assert (refused.status_code, refused.json()["type"]) == (401, "KeyRequiredError")
    assert refused.headers["www-authenticate"].startswith("Bearer ")
    assert guarded.draw(headers={"X-API-Key": DISABLED}).status_code == 403
    assert guarded.draw(headers=BEARER).status_code == 200
    assert guarded.client.get("/ready").status_code == 200
    too_much = guarded.client.get("/health", headers={f"x-{n}": "y" for n in range(200)})
    assert (too_much.status_code, too_much.json()["type"]) == (431, "HeadersTooLargeError")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        with guarded.held(FLUX_REPLICA):
            drawings = [pool.submit(guarded.draw, headers=BEARER, seed=seed) for seed in range(2)]
            until(lambda: guarded.metric("likeness_in_flight") == 2)
            assert [guarded.draw(headers=BEARER, seed=seed).status_code for seed in range(2, 4)] == [429, 429]
        assert [drawing.result().status_code for drawing in drawings] == [200, 200]
    assert guarded.draw(headers=BEARER).status_code == 200, "whoever left made room"


def test_two_replicas_count_together_and_alone_where_they_must(serve_port: int) -> None:
    import ray

    from serve_app.access.shared import shared_limits

    limits = ClientLimits(requests_per_minute=1.0, burst=3)
    num_lost = 0

    def lost() -> None:
        nonlocal num_lost
        num_lost += 1

    async def test() -> None:
        replicas = [shared_limits("both", max_visit_s=60.0, on_lost=lost) for _ in range(2)]
        for replica in replicas:
            replica._timeout_s = 30.0  # a busy machine

        async def ask(number: int, client: str) -> bool:
            answer = await replicas[number % 2].enter(f"{client}-{number}", client, limits)
            return answer is None

        assert [await ask(n, "a") for n in range(5)] == [True, True, True, False, False]
        assert await replicas[0].reserve("a-1", 1.0) == 0.0
        assert num_lost == 0
        actor = replicas[0]._actor
        ray.kill(actor)
        await asyncio.to_thread(until, lambda: not is_alive("both"))
        for replica in replicas:
            replica._actor = actor
            replica._find = OneThread(unreachable)
        assert [await ask(n, "b") for n in range(8)] == [True] * 6 + [False] * 2, "three from each"
        assert num_lost == 2
        for n in range(6):
            replicas[n % 2].leave(f"b-{n}", device_s=0.0, work=0.0)
            assert not isinstance(await replicas[n % 2].reserve(f"b-{n}", 1.0), Refusal)

    asyncio.run(test())


def test_requests_that_died_with_their_replica_are_not_held_against_their_client(serve_port: int) -> None:
    import ray

    from serve_app.access import shared

    class Replica:
        """An ingress replica as far as limits go."""

        async def enter(self, visit: str) -> bool:
            limits = shared.shared_limits("ghosts", max_visit_s=600.0, on_lost=lambda: None)
            limits._timeout_s = 30.0
            return await limits.enter(visit, "a", ClientLimits(max_concurrent=2)) is None

    # Detached: on a busy machine Ray may take a handle for forgotten before its actor has started.
    one, two = (
        ray.remote(Replica).options(num_cpus=0, lifetime="detached", name=f"replica {n}").remote() for n in range(2)
    )
    assert [ray.get(replica.enter.remote(f"{n}")) for n, replica in enumerate((one, two, one, two))] == [
        True,
        True,
        False,
        False,
    ]
    ray.kill(one)
    until(lambda: ray.get(two.enter.remote("again")))
    assert not ray.get(two.enter.remote("and again")), "what the living replica has at work still counts"
    ray.kill(two)


def unreachable() -> Any:
    raise ConnectionError


def is_alive(app_name: str) -> bool:
    import ray

    from serve_app.access.shared import VERSION
    from serve_app.head_actor import NAMESPACE

    return f"limits-{VERSION}-{app_name}" in {
        actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if actor["namespace"] == NAMESPACE
    }


def test_a_limiter_that_nobody_needs_ends(serve_port: int) -> None:
    import ray

    from serve_app.access.shared import LimiterActor

    actor = ray.remote(LimiterActor).options(num_cpus=0, lifetime="detached", name="alone").remote(60.0, 0.5)
    limits = ClientLimits(requests_per_minute=60.0, burst=1)
    assert ray.get(actor.enter.remote("v", "a", limits)) is None
    actor.leave.remote("v", 0.0, 0.0)
    until(lambda: "alone" not in ray.util.list_named_actors())


MARKED_PROMPT = "xylophone-marmalade-4711"
MARKED_NEGATIVE = "quagmire-tangerine-0815"
FACE = picture((201, 33, 77), side_px=48)
FACE_URL = data_url(FACE)


def log_folder() -> Path:
    """Where this Ray and everything on it writes its logs."""
    from ray._private.worker import global_worker

    return Path(global_worker.node.get_logs_dir_path())


def test_no_log_of_anybody_holds_a_prompt_a_face_or_a_key(guarded: RunningService) -> None:
    """Good requests, every kind of bad one, callers that leave, and a replica that dies with one at work."""
    marked = {"prompt": MARKED_PROMPT, "negative_prompt": MARKED_NEGATIVE, "reference_image": FACE_URL}

    def draw(request_id: str, **changes: Any) -> httpx.Response:
        return guarded.draw(headers={**BEARER, "X-Request-Id": request_id}, **(marked | changes))

    assert draw("marked-good").status_code == 200
    assert draw("marked-wide", width=1000).status_code == 400
    assert draw("marked-faceless", face_policy="require").status_code == 400
    assert draw("marked-broken", reference_image=FACE_URL[: len(FACE_URL) // 2]).status_code == 400
    assert draw("marked-unknown", **{MARKED_PROMPT: MARKED_NEGATIVE}).status_code == 400
    assert draw("marked-late", max_wait_s=0.05, steps=100).status_code in (429, 504)
    for headers in ({"X-API-Key": DISABLED}, {"X-API-Key": KEY[:-1]}, {}):
        assert guarded.draw(headers=headers, **marked).status_code in (401, 403)
    malformed = json.dumps(body(**marked))[:-1]
    answer = guarded.client.post(URL, content=malformed, headers={**BEARER, "Content-Type": "application/json"})
    assert answer.status_code == 400
    events = guarded.draw(headers={**BEARER, "Accept": "text/event-stream"}, **marked)
    assert "event: done" in events.text
    with guarded.asking(headers={**BEARER, "X-Request-Id": "marked-gone"}, **marked, steps=100):
        guarded.wait_for_work(FLUX_REPLICA)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        drawing = pool.submit(draw, "marked-killed", steps=100)
        guarded.wait_for_work(FLUX_REPLICA)
        os.kill(guarded.replica_pid(FLUX_REPLICA), signal.SIGKILL)
        assert drawing.result().status_code == 200
    until(lambda: guarded.client.get("/ready").status_code == 200)

    until(lambda: len(request_ids()) == 8)  # the logs hold what happened, so it is them that are searched
    encoded = FACE_URL.partition(",")[2]
    secrets = [MARKED_PROMPT, MARKED_NEGATIVE, KEY, KEY[:-1], DISABLED, encoded[:40], encoded[-40:], "data:image"]
    wanted = {secret: secret.encode() for secret in secrets} | {"face": FACE[:32]}
    found = [
        (path.name, name)
        for path in log_folder().rglob("*")
        if path.is_file()
        for name, secret in wanted.items()
        if secret in path.read_bytes()
    ]
    assert found == []


def request_ids() -> set[str]:
    """Ids of the marked requests that some log names."""
    text = b"".join(path.read_bytes() for path in log_folder().rglob("*") if path.is_file())
    ids = ("good", "wide", "faceless", "broken", "unknown", "late", "gone", "killed")
    return {name for name in ids if f"marked-{name}".encode() in text}
