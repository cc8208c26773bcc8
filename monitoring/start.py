"""``make monitor``: Prometheus on this machine, with this project's rules, for an application that runs on it.

Runs in the foreground until Ctrl-C, listens on the loopback only, and keeps its data in ``output/monitor``.
"""

# ruff: noqa: T201  (printing is what this module is for)

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from serve_app.exit_codes import ExitCode

ROOT: Final = Path(__file__).resolve().parent.parent
CONFIG: Final = ROOT / "monitoring" / "prometheus" / "prometheus.yml"
UNPACKED: Final = ROOT / ".prometheus" / "usr" / "bin"
"""Where scripts/get_prometheus.py puts it."""


def find_program(name: str) -> Path | None:
    """``prometheus`` or ``promtool``, installed or unpacked; None where there is none."""
    found = shutil.which(name) or shutil.which(name, path=str(UNPACKED))
    return Path(found) if found else None


def config_for(
    targets: Sequence[str],
    folder: Path,
    *,
    scrape_s: int,
    ray_files: Sequence[str] = (),
    metrics_path: str = "/metrics",
) -> Path:
    """Writes the project's configuration for these addresses of the application into a folder; its path.

    Args:
        scrape_s: seconds between scrapes, and between evaluations of the rules.
        ray_files: where Ray writes its nodes down, instead of where it does by default.
        metrics_path: where the application has its metrics; behind its route prefix.
    """
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": f"{scrape_s}s", "evaluation_interval": f"{scrape_s}s"}
    config["rule_files"] = [str(CONFIG.parent / name) for name in config["rule_files"]]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    del jobs["likeness"]["file_sd_configs"]
    jobs["likeness"]["metrics_path"] = metrics_path
    jobs["likeness"]["static_configs"] = [{"targets": list(targets)}]
    if ray_files:
        jobs["ray"]["file_sd_configs"][0]["files"] = list(ray_files)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def command(program: Path, config: Path, *, listen: str, data: Path) -> list[str]:
    """Prometheus on an address, with its data in a folder."""
    return [
        str(program),
        f"--config.file={config}",
        f"--storage.tsdb.path={data}",
        f"--web.listen-address={listen}",
        "--log.level=warn",
    ]


def main(argv: Sequence[str] | None = None) -> ExitCode:  # noqa: RET503  (its last line does not return)
    """``python -m monitoring.start --target HOST:PORT --listen HOST:PORT``."""
    parser = argparse.ArgumentParser(prog="python -m monitoring.start", description=__doc__)
    parser.add_argument("--target", default="127.0.0.1:8000", help="the application (default %(default)s)")
    parser.add_argument("--listen", default="127.0.0.1:9090", help="Prometheus itself (default %(default)s)")
    arguments = parser.parse_args(argv)
    program = find_program("prometheus")
    if program is None:
        print(
            "There is no Prometheus here. Install Debian's package (apt install prometheus), or unpack it into this "
            "folder: python3 scripts/get_prometheus.py",
            file=sys.stderr,
        )
        return ExitCode.BAD_INPUT
    folder = ROOT / "output" / "monitor"
    config = config_for([arguments.target], folder, scrape_s=5)
    print(f"Prometheus on http://{arguments.listen} (try /alerts). Ctrl-C stops it.", file=sys.stderr, flush=True)
    become(command(program, config, listen=arguments.listen, data=folder / "data"))


def become(args: list[str]) -> NoReturn:
    """Prometheus in this process's place, so that Ctrl-C is its own."""
    os.execv(args[0], args)  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
