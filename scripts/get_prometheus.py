"""Puts Debian's package `prometheus` into .prometheus/ of this repository: `python3 scripts/get_prometheus.py`.

Takes the package apart instead of installing it: no root, no service that starts by itself. Does nothing where
`prometheus` and `promtool` are installed, or are there already.
"""
# ruff: noqa: S603, T201  (its arguments are its own; printing is what it is for)

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".prometheus"
PROGRAMS = ("prometheus", "promtool")


def main() -> int:
    """Fetch and unpack."""
    if all(shutil.which(name) or (FOLDER / "usr/bin" / name).exists() for name in PROGRAMS):
        return 0
    apt_get, dpkg_deb = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if apt_get is None or dpkg_deb is None:
        print("This machine has no apt-get: install Prometheus, so that `prometheus` and `promtool` are in PATH.")
        return 1
    FOLDER.mkdir(exist_ok=True)
    fetched = fetch(apt_get)
    if not fetched:  # the lists of packages may be old, or none; only root can renew them
        subprocess.run([apt_get, "update"], check=False, stdout=subprocess.DEVNULL)
        fetched = fetch(apt_get)
    if not fetched:
        print("apt-get could not fetch the package prometheus; see above.")
        return 1
    subprocess.run([dpkg_deb, "--extract", str(fetched), str(FOLDER)], check=True)
    fetched.unlink()
    return 0


def fetch(apt_get: str) -> "Path | None":
    """The package's file; None where it was not to be had."""
    subprocess.run([apt_get, "download", "prometheus"], check=False, cwd=FOLDER, stdout=subprocess.DEVNULL)
    return next(FOLDER.glob("prometheus_*.deb"), None)


if __name__ == "__main__":
    sys.exit(main())
