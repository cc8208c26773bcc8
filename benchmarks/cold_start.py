"""From nothing to the first picture, and the pictures after it, through the whole application on a local Ray.

    python -m benchmarks.cold_start --config serve_config.local.yaml --out results.json

Starts the application of a Serve config on a Ray of its own, waits until every stage can serve, then sends requests
over HTTP: the first, some more one after another, and some at once. Ends what it started.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from benchmarks.reference_faces import reference_urls
from serve_app.local.relay import Address
from serve_app.local.server import local_server

REQUEST_TIMEOUT_S = 300.0


def ask(client: httpx.Client, *, seed: int, num_steps: int) -> dict[str, Any]:
    """One request; its answer without the picture, and the seconds it took over HTTP."""
    body = {
        "prompt": "A professional AI influencer portrait",
        "reference_image": reference_urls(1)[0],
        "seed": seed,
        "steps": num_steps,
    }
    started_s = time.perf_counter()
    response = client.post("/flux-ipadapter-faceid", json=body, headers={"Accept": "application/json"})
    seconds = time.perf_counter() - started_s
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    picture = answer.pop("image")
    return {"http_s": round(seconds, 3), "picture_bytes": len(picture) * 3 // 4, **answer}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--num-serial", type=int, default=3)
    parser.add_argument("--num-at-once", type=int, default=4)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--ready-timeout", type=float, default=240.0)
    parser.add_argument("--log-file", type=Path, default=Path("output/cold_start.log"))
    arguments = parser.parse_args()

    started_s = time.perf_counter()
    address = Address(host="127.0.0.1", port=arguments.port)
    results: dict[str, Any] = {"command": " ".join(["python -m benchmarks.cold_start", *sys.argv[1:]])}
    with local_server(arguments.config, address, arguments.log_file) as server:
        try:
            server.wait_until_ready(lambda words: print(words, flush=True), timeout_s=arguments.ready_timeout)
        except Exception:
            print(server.log_tail())
            raise
        results["start_to_ready_s"] = round(time.perf_counter() - started_s, 2)
        with httpx.Client(base_url=str(address), timeout=REQUEST_TIMEOUT_S, trust_env=False) as client:
            results["first"] = ask(client, seed=0, num_steps=arguments.steps)
            results["start_to_first_picture_s"] = round(time.perf_counter() - started_s, 2)
            serial = [ask(client, seed=seed, num_steps=arguments.steps) for seed in range(1, arguments.num_serial + 1)]
            results["serial_http_s"] = [answer["http_s"] for answer in serial]
            results["serial_median_s"] = statistics.median(results["serial_http_s"])
            results["last"] = serial[-1]
            with ThreadPoolExecutor(arguments.num_at_once) as pool:
                at_once_s = time.perf_counter()
                seeds = range(100, 100 + arguments.num_at_once)
                crowd = list(pool.map(lambda seed: ask(client, seed=seed, num_steps=arguments.steps), seeds))
            results["at_once"] = {
                "num": arguments.num_at_once,
                "seconds": round(time.perf_counter() - at_once_s, 3),
                "http_s": [answer["http_s"] for answer in crowd],
            }
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
