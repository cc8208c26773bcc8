"""A real Prometheus watches the application under load, while replicas die, are added, and the ledger itself dies."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import copy
import dataclasses
import http.server
import json
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.load_sender import Sender, SendingLimits
from benchmarks.reference_faces import reference_urls
from benchmarks.traces import Arrival
from monitoring.dashboards import DASHBOARDS
from serve_app.access.keys import digest_of, new_key
from serve_app.client import ENDPOINT
from serve_app.metrics import table
from serve_app.metrics.cuda import CudaReader
from serve_app.metrics.engine import follow_device
from serve_app.metrics.page import CONTENT_TYPE, render
from serve_app.metrics.recorder import Recorder
from serve_app.stages import FACE_STAGE, FLUX_REPLICA, INGRESS
from tests.asgi import FAKE_SETTINGS, body
from tests.prometheus_server import Prometheus, needs_prometheus, prometheus
from tests.serve.conftest import RunningService, until
from tests.test_metrics import Cuda

pytestmark = [pytest.mark.serve, needs_prometheus]

PREFIX = "/watched"
STEP_S = 0.01
WINDOWS = {"$__rate_interval": "1m", "$__range": "5m"}
"""What Grafana puts in."""


@dataclasses.dataclass(kw_only=True)
class Watched:
    """An application under its own name, and the Prometheus that watches it."""

    service: RunningService
    prometheus: Prometheus
    config: dict[str, Any]
    deploy: Callable[[dict[str, Any]], None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.service.port}{PREFIX}"

    def deployment(self, name: str) -> dict[str, Any]:
        """What the configuration says of it."""
        (found,) = (d for d in self.config["applications"][0]["deployments"] if d["name"] == name)
        return found

    def counted(self) -> collections.Counter[tuple[int, str]]:
        """Ended requests by status and reason, as Prometheus has them: what a load generator sees from outside."""
        counts: collections.Counter[tuple[int, str]] = collections.Counter()
        for series in self.prometheus.query("likeness_requests_total > 0"):
            labels = series["metric"]
            counts[int(labels["status"]), labels["reason"].replace("none", "ok")] = int(float(series["value"][1]))
        return counts


@pytest.fixture(scope="module")
def watched(serve_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Two ingress replicas, one face stage, and Flux replicas that scale by the policy, from two on."""
    import ray
    from ray import serve
    from ray.serve._private.api import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    config = watched_config()
    name = config["applications"][0]["name"]

    def deploy(wanted: dict[str, Any]) -> None:
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(copy.deepcopy(wanted)), _blocking=False)

    folder = tmp_path_factory.mktemp("prometheus")
    nodes = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes()]
    ray_file = folder / "ray.json"  # as Ray's dashboard writes it, which the tests' Ray has none of
    ray_file.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": nodes}]))
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{serve_port}{PREFIX}", timeout=60.0, trust_env=False) as client,
        a_gpu_and_faces() as stand_in,
    ):
        deploy(config)
        until(lambda: client.get("/ready").status_code == 200, timeout_s=90)
        service = RunningService(app_name=name, client=client, port=serve_port)
        targets = [f"127.0.0.1:{serve_port}", stand_in]
        with prometheus(folder, targets, [str(ray_file)], metrics_path=f"{PREFIX}/metrics") as watching:
            yield Watched(service=service, prometheus=watching, config=config, deploy=deploy)
    serve.delete(name)


def watched_config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "serve_config.local.yaml").read_text())
    application = loaded["applications"][0]
    engine = {"kind": "fake", "step_s": STEP_S, "device_name": "NVIDIA L40S"}
    limits = {"request_timeout_s": 60.0}
    application |= {"name": f"watched-{secrets.token_hex(4)}", "route_prefix": PREFIX}
    application["args"] = FAKE_SETTINGS | {"engine": engine, "limits": limits}
    for deployment in application["deployments"]:
        deployment |= {"graceful_shutdown_timeout_s": 5.0}
        deployment["ray_actor_options"]["num_cpus"] = 0.1
        if deployment["name"] == INGRESS:
            deployment["num_replicas"] = 2
        if deployment["name"] == FLUX_REPLICA:
            deployment.pop("num_replicas", None)
            kwargs = {"may_owe_s": 60.0, "cold_start_s": 1.0, "hold_s": 60.0, "idle_to_zero_s": 600.0, "request_s": 1.0}
            policy = {"policy_function": "serve_app.scaling.policy:WorkPolicy", "policy_kwargs": kwargs}
            deployment["autoscaling_config"] = {"min_replicas": 2, "max_replicas": 4, "policy": policy}
    return loaded


@contextlib.contextmanager
def a_gpu_and_faces() -> Iterator[str]:
    """Stands in for what a fake engine lacks, a GPU, caches and pictures with faces: an address with their metrics."""
    recorder = Recorder("replica-1")
    follow_device(recorder, "NVIDIA L40S", CudaReader(Cuda(power_mw=310_000)))

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            recorder.observe(table.IDENTITY_SCORE, 0.71)
            recorder.add(table.CACHE_LOOKUPS, "text", "hit")
            report = recorder.report()
            rows = [row for row in table.TABLE.values() if row.labels == table.DEVICE_LABELS]
            page = render([*rows, table.IDENTITY_SCORE, table.CACHE_LOOKUPS], {**report.totals, **report.gauges})
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def load(watched: Watched, *, num: int, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> Sender:
    """Pictures, a refusal among every ten, at regular times; and what came back."""

    def arrival(n: int) -> Arrival:
        side_px = 4096 if n % 10 == 9 else 256  # more than the model draws
        steps = 5 + n % 20
        return Arrival(
            at_s=seconds * n / num, width_px=side_px, height_px=256, num_steps=steps, cfg=1.0, person=n % 5, seed=n
        )

    sender = Sender(watched.url, [arrival(n) for n in range(num)], reference_urls(5), SendingLimits())

    async def run() -> None:
        sending = asyncio.create_task(sender.run(asyncio.Event()))
        await asyncio.sleep(seconds / 3)
        await asyncio.to_thread(meanwhile)
        await sending

    asyncio.run(run())
    return sender


def kill(service: RunningService, deployment: str, signal_: int = signal.SIGKILL) -> None:
    """End one replica's process."""
    os.kill(min(service.replica_pids(deployment)), signal_)


def test_sums_agree_with_the_load_generator_whoever_dies_or_comes(watched: Watched) -> None:
    service, asked = watched.service, watched.prometheus
    until(lambda: asked.is_scraping("likeness") and asked.is_scraping("ray"), timeout_s=30)
    seen: collections.Counter[tuple[int, str]] = collections.Counter()
    usd, steps = 0.0, 0

    def check(sender: Sender) -> None:
        nonlocal usd, steps
        seen.update(sender.answers)
        usd += sum(outcome.cost_usd for outcome in sender.outcomes)
        steps += sum(outcome.arrival.num_steps for outcome in sender.outcomes if outcome.is_ok)
        until(lambda: watched.counted() == seen, timeout_s=20)
        assert asked.value("likeness_image_steps_total") == steps
        assert asked.value("sum(likeness_images_total)") == seen[200, "ok"]
        # Headers have six decimals.
        assert asked.value("likeness_cost_usd_total") == pytest.approx(usd, abs=1e-6 * len(sender.outcomes) + 1e-5)
        assert asked.value("likeness_requests_received_total") == sum(seen.values())
        assert asked.value('likeness_stage_seconds_count{stage="total"}') == seen[200, "ok"]

    check(load(watched, num=60, seconds=3))
    assert seen == {(200, "ok"): 54, (400, "InvalidRequestError"): 6}
    engine_steps = asked.value("likeness_engine_sample_steps_total")
    assert engine_steps == steps, "nobody died, nobody left: engines took the steps that were sent"

    check(load(watched, num=60, seconds=3, meanwhile=lambda: kill(service, FLUX_REPLICA)))
    assert seen == {(200, "ok"): 108, (400, "InvalidRequestError"): 12}, "callers of the dead one got their pictures"

    def one_more() -> None:
        watched.deployment(FLUX_REPLICA)["autoscaling_config"]["min_replicas"] = 3
        watched.deploy(watched.config)
        until(lambda: len(service.replica_pids(FLUX_REPLICA)) == 3, timeout_s=60)

    check(load(watched, num=60, seconds=3, meanwhile=one_more))
    until(lambda: asked.value('likeness_replicas{deployment="FluxReplica", state="ready"}') == 3, timeout_s=30)
    until(lambda: asked.value('likeness_scaling_wanted_replicas{deployment="FluxReplica"}') == 3, timeout_s=30)

    kill(service, INGRESS)  # what it has counted is a second old
    kill(service, FACE_STAGE)
    until(lambda: len(service.replica_pids(INGRESS)) == 2 and len(service.replica_pids(FACE_STAGE)) == 1)
    until(lambda: service.client.get("/ready").status_code == 200)
    check(load(watched, num=60, seconds=3))

    ledger = ledger_pid(service.app_name)
    check(load(watched, num=60, seconds=3, meanwhile=lambda: os.kill(ledger, signal.SIGKILL)))
    assert ledger_pid(service.app_name) != ledger
    for counter in ("likeness_requests_received_total", "likeness_engine_steps_total", "likeness_cost_usd_total"):
        assert asked.value(f"resets({counter}[10m])") == 0, "Prometheus would add it all a second time"


def ledger_pid(app_name: str) -> int:
    """The process that keeps the sums."""
    import ray

    from serve_app.metrics.ray_ledger import RayLedger

    actor = RayLedger(app_name)._reach()
    return int(ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=30))


def test_every_panel_of_every_dashboard_shows_something(watched: Watched, tmp_path: Path) -> None:
    """Under load, with a client who has a key, and with some that leave; an update on the way loses no counts."""
    service, asked, key = watched.service, watched.prometheus, new_key()
    headers = {"Authorization": f"Bearer {key}"}
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[client]]\nname = "studio"\nkeys = [{{ sha256 = "{digest_of(key).hex()}" }}]\n')
    num_before = asked.value("likeness_requests_received_total")
    watched.config["applications"][0]["args"]["access"] = {"key_file": str(keys), "open_paths": ["/metrics"]}
    watched.deploy(watched.config)
    until(lambda: service.client.get("/v1/models").status_code == 401, timeout_s=90)
    is_enough = threading.Event()

    def call(caller: int) -> None:
        while not is_enough.is_set():
            if caller == 0:  # one who leaves
                with contextlib.suppress(httpx.ReadTimeout):
                    service.client.post(ENDPOINT, json=body(steps=100), headers=headers, timeout=0.3)
            else:
                service.client.post(ENDPOINT, json=body(steps=10, seed=caller), headers=headers)

    empty: list[str] = []

    def all_show_something() -> bool:
        empty[:] = [where for where, expr in panel_queries() if not asked.query(expr)]
        return not empty

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        calling = [pool.submit(call, caller) for caller in range(4)]
        try:
            until(all_show_something, timeout_s=60)
        except AssertionError:
            raise AssertionError(f"no data: {empty}") from None
        finally:
            is_enough.set()
        assert [future.result() for future in calling] == [None] * 4
    assert (asked.value("likeness_requests_received_total") or 0) > (num_before or 0) > 0
    assert asked.value("resets(likeness_requests_received_total[10m])") == 0, "all replicas are others, the sums go on"
    assert asked.query('ALERTS{alertstate="firing", severity="page"}') == []


def panel_queries() -> Iterator[tuple[str, str]]:
    """Every query of every panel, and where it is."""
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for expr in panel.queries.values():
                for variable, value in WINDOWS.items():
                    expr = expr.replace(variable, value)
                yield f"{dashboard.title} / {panel.title}: {expr}", expr
