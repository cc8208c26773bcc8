"""The process that starts a Ray of its own and deploys a Serve config on it, as ``serve run`` does.

It says how far it is as JSON lines on standard output; everything else (Ray's and the replicas' logs) goes to
standard error. It runs until it is ended; its Ray ends with it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import ray
import yaml
from ray import serve
from ray.serve._private import api, constants  # no public call deploys a config file; `serve run` does it so too
from ray.serve.schema import ServeDeploySchema

from serve_app.config_file import ConfigFileError, validate_serve_config
from serve_app.exit_codes import ExitCode

OBJECT_STORE_BYTES = 256 * 2**20
"""What passes between the stages is a crop and a picture: at most 12 MB at 2048×2048. Ray would take 30 % of memory."""

POLL_S = 0.25

POLL_RUNNING_S = 2.0
"""Once the application runs. A look takes 24 ms of processor time here, and more in Serve's controller: four a second
took a tenth of a core from the stages."""


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m serve_app.local.cluster --config FILE --host HOST --port PORT``."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.local.cluster", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args(argv)
    status = _claim_stdout()
    try:
        config = read_config(arguments.config, host=arguments.host, port=arguments.port)
    except ConfigFileError as error:
        say(status, phase="refused", problems=error.problems)
        return ExitCode.BAD_INPUT
    deploy(config, status)
    told: dict[str, Any] = {}
    while True:
        state = deployment_states()
        if state != told:
            say(status, **state)
            told = state
        time.sleep(POLL_RUNNING_S if set(state["applications"]) == {"RUNNING"} else POLL_S)


def read_config(path: Path, *, host: str, port: int) -> ServeDeploySchema:
    """The Serve config of a file, listening where we say. Raises ConfigFileError where it must not be deployed."""
    validate_serve_config(path)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["http_options"] = {**config.get("http_options", {}), "host": host, "port": port}
    return ServeDeploySchema.model_validate(config)


def deploy(config: ServeDeploySchema, status: TextIO) -> None:
    """Start Ray and Serve and hand the config over; returns before the replicas are up."""
    say(status, phase="starting Ray")
    ray.init(
        address="local",
        namespace=constants.SERVE_NAMESPACE,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    say(status, phase="starting Serve")
    client = api.serve_start(
        http_options=config.http_options.model_dump(),
        proxy_location=config.proxy_location,
        global_logging_config=config.logging_config,
        grpc_options=config.grpc_options.model_dump(),
        controller_options=config.controller_options,
    )
    client.deploy_apps(config, _blocking=False)


def deployment_states() -> dict[str, Any]:
    """What state the applications and their deployments are in, and Serve's own words on what went wrong."""
    applications = serve.status().applications.values()
    deployments = {name: d for application in applications for name, d in application.deployments.items()}
    messages = [application.message for application in applications]
    messages += [deployment.message for deployment in deployments.values()]
    return {
        "phase": "deploying",
        "applications": [str(application.status.value) for application in applications],
        "deployments": {name: str(deployment.status.value) for name, deployment in deployments.items()},
        "messages": [message for message in messages if message],
    }


def say(status: TextIO, **fields: Any) -> None:
    """One JSON line. Where nobody listens any more, this process has no reason to live."""
    try:
        status.write(json.dumps(fields) + "\n")
        status.flush()
    except BrokenPipeError:
        os._exit(0)


def _claim_stdout() -> TextIO:
    """Standard output for us alone: what Ray and the replicas print joins standard error."""
    mine = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(mine, "w", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
