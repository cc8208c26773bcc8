"""A real Prometheus watches the application on several nodes, under load, while replicas, a node and the ledger die."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
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
from tests.cluster.conftest import MARKS, Deploy, Machines, is_settled, stage_of
from tests.cluster.load import picture_body
from tests.prometheus_server import Prometheus, needs_prometheus, prometheus
from tests.serve.conftest import RunningService, until
from tests.test_metrics import Cuda

pytestmark = [*MARKS, needs_prometheus]

WINDOWS = {"$__rate_interval": "1m", "$__range": "5m"}
"""What Grafana puts in."""


@dataclasses.dataclass(kw_only=True)
class Watched:
    """An application under a name of its own, and the Prometheus that watches it.

    Attributes:
        num_flux_replicas: at least.
        access: settings of the door.
    """

    deploy: Deploy
    prometheus: Prometheus
    app_name: str
    num_flux_replicas: int = 2
    access: dict[str, Any] = dataclasses.field(default_factory=dict)

    def deployed(self) -> RunningService:
        """The application as it is described here; returns at once."""
        running = self.deploy(self._change, is_awaited=False)
        return dataclasses.replace(running, app_name=self.app_name)

    def counted(self) -> collections.Counter[tuple[int, str]]:
        """Ended requests by status and reason, as Prometheus has them: what a load generator sees from outside."""
        counts: collections.Counter[tuple[int, str]] = collections.Counter()
        for series in self.prometheus.query("likeness_requests_total > 0"):
            labels = series["metric"]
            counts[int(labels["status"]), labels["reason"].replace("none", "ok")] = int(float(series["value"][1]))
        return counts

    def _change(self, config: dict[str, Any]) -> None:
        application = config["applications"][0]
        application["name"] = self.app_name
        application["args"]["engine"]["step_s"] = 0.01
        application["args"]["access"] = self.access
        flux = stage_of(config, FLUX_REPLICA)
        del flux["num_replicas"]
        flux["autoscaling_config"] = flux["scaled"] | {"min_replicas": self.num_flux_replicas}
        flux["autoscaling_config"]["policy"]["policy_kwargs"]["may_owe_s"] = 60.0  # no more than that
        for deployment in config["applications"][0]["deployments"]:
            deployment["graceful_shutdown_timeout_s"] = 10.0


@pytest.fixture(scope="module")
def watched(machines: Machines, deploy: Deploy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Ingress, face stage and Flux replicas, two of each; the latter scale by the policy."""
    import ray

    folder, app_name = tmp_path_factory.mktemp("prometheus"), f"watched-{secrets.token_hex(4)}"
    ray_file = folder / "ray.json"  # as Ray's dashboard writes it, which these nodes have none of
    nodes = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]
    ray_file.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": nodes}]))
    application = Watched(deploy=deploy, app_name=app_name, prometheus=None)  # type: ignore[arg-type]  # below
    service = application.deployed()
    until(lambda: is_settled(service), timeout_s=90)
    with (
        a_gpu_and_faces() as stand_in,
        prometheus(folder, [f"127.0.0.1:{service.port}", stand_in], [str(ray_file)]) as watching,
    ):
        yield dataclasses.replace(application, prometheus=watching)


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


def load(service: RunningService, *, num: int, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> Sender:
    """Pictures, a refusal among every ten, at regular times; and what came back."""

    def arrival(n: int) -> Arrival:
        side_px = 4096 if n % 10 == 9 else 256  # more than the model draws
        steps = 5 + n % 20
        return Arrival(
            at_s=seconds * n / num, width_px=side_px, height_px=256, num_steps=steps, cfg=1.0, person=n % 5, seed=n
        )

    sender = Sender(str(service.client.base_url), [arrival(n) for n in range(num)], reference_urls(5), SendingLimits())

    async def run() -> None:
        sending = asyncio.create_task(sender.run(asyncio.Event()))
        await asyncio.sleep(seconds / 3)
        await asyncio.to_thread(meanwhile)
        await sending

    asyncio.run(run())
    return sender


def kill(service: RunningService, deployment: str) -> None:
    """End one replica's process, and wait until another has taken its place."""
    pids = service.replica_pids(deployment)
    os.kill(min(pids), signal.SIGKILL)
    until(lambda: len(service.replica_pids(deployment) - {min(pids)}) == len(pids), timeout_s=60)


def ledger_pid(app_name: str) -> int:
    """The process that keeps the sums."""
    import ray

    from serve_app.metrics.ray_ledger import RayLedger

    actor = RayLedger(app_name)._reach()
    return int(ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=30))


def test_sums_agree_with_the_load_generator_whoever_dies_or_comes(watched: Watched, machines: Machines) -> None:
    service, asked = watched.deployed(), watched.prometheus
    until(lambda: asked.is_scraping("likeness") and asked.is_scraping("ray"), timeout_s=60)
    seen: collections.Counter[tuple[int, str]] = collections.Counter()
    usd, num_steps = 0.0, 0

    def check(meanwhile: Callable[[], None] = lambda: None) -> None:
        nonlocal usd, num_steps
        sender = load(service, num=60, seconds=3, meanwhile=meanwhile)
        seen.update(sender.answers)
        usd += sum(outcome.cost_usd for outcome in sender.outcomes)
        num_steps += sum(outcome.arrival.num_steps for outcome in sender.outcomes if outcome.is_ok)
        until(lambda: watched.counted() == seen, timeout_s=60)
        assert asked.value("likeness_image_steps_total") == num_steps
        assert asked.value("sum(likeness_images_total)") == seen[200, "ok"]
        assert asked.value("likeness_cost_usd_total") == pytest.approx(usd, abs=1e-6 * sum(seen.values()))  # as headers
        assert asked.value('likeness_stage_seconds_count{stage="total"}') == seen[200, "ok"]

    check()
    assert seen == {(200, "ok"): 54, (400, "InvalidRequestError"): 6}
    assert asked.value("likeness_requests_received_total") == 60
    # Engines took the steps that were sent; their replicas tell it on a beat of their own.
    until(lambda: asked.value("likeness_engine_sample_steps_total") == num_steps, timeout_s=60)

    check(meanwhile=lambda: kill(service, FLUX_REPLICA))

    def one_more() -> None:
        watched.num_flux_replicas = 3
        watched.deployed()
        until(lambda: len(service.replica_pids(FLUX_REPLICA)) == 3, timeout_s=60)

    check(meanwhile=one_more)
    until(lambda: asked.value('likeness_replicas{deployment="FluxReplica", state="ready"}') == 3, timeout_s=60)
    until(lambda: asked.value('likeness_scaling_wanted_replicas{deployment="FluxReplica"}') == 3, timeout_s=60)

    kill(service, INGRESS)  # what it has counted is seconds old
    check(meanwhile=lambda: kill(service, FACE_STAGE))

    ledger = ledger_pid(service.app_name)
    check(meanwhile=lambda: os.kill(ledger, signal.SIGKILL))
    assert ledger_pid(service.app_name) != ledger

    def a_node_goes() -> None:
        machines.kill_gpu_node(machines.index_of_one_with(service.replica_pids(FLUX_REPLICA)))
        until(lambda: len(service.replica_pids(FLUX_REPLICA)) == 3, timeout_s=90)

    machines.add_gpu_node()
    check(meanwhile=a_node_goes)
    assert seen == {(200, "ok"): 6 * 54, (400, "InvalidRequestError"): 6 * 6}, "whoever died, all got their pictures"
    for counter in ("likeness_requests_received_total", "likeness_engine_steps_total", "likeness_cost_usd_total"):
        assert asked.value(f"resets({counter}[10m])") == 0, "Prometheus would add it all a second time"


def test_every_panel_of_every_dashboard_shows_something(watched: Watched, tmp_path: Path) -> None:
    """Under load, with a client who has a key, and with some that leave; an update on the way loses no counts."""
    asked, key = watched.prometheus, new_key()
    headers = {"Authorization": f"Bearer {key}"}
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[client]]\nname = "studio"\nkeys = [{{ sha256 = "{digest_of(key).hex()}" }}]\n')
    num_before = asked.value("likeness_requests_received_total") or 0.0
    watched.access = {"key_file": str(keys), "open_paths": ["/metrics"]}
    service = watched.deployed()
    until(lambda: service.client.get("/v1/models").status_code == 401, timeout_s=90)
    is_enough = threading.Event()
    answers: collections.Counter[str] = collections.Counter()

    def call(caller: int) -> None:
        while not is_enough.is_set():
            if caller == 0:  # one who leaves
                with contextlib.suppress(httpx.ReadTimeout):
                    service.client.post(ENDPOINT, json=picture_body(steps=50), headers=headers, timeout=0.3)
            else:
                answer = service.client.post(ENDPOINT, json=picture_body(steps=10, seed=caller), headers=headers)
                answers["a picture" if answer.is_success else answer.json()["error"]] += 1

    empty: list[str] = []

    def all_show_something() -> bool:
        empty[:] = [where for where, expr in panel_queries() if not asked.query(expr)]
        return not empty

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        calling = [pool.submit(call, caller) for caller in range(4)]
        try:
            until(all_show_something, timeout_s=60)
        except AssertionError:
            raise AssertionError(f"no data: {empty}; callers were told {answers.most_common(5)}") from None
        finally:
            is_enough.set()
        assert [future.result() for future in calling] == [None] * 4
    assert (asked.value("likeness_requests_received_total") or 0.0) > num_before
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
