"""Makes .venv with the pinned dependencies, once: `python3 scripts/make_venv.py [--dev]`.

Runs on whatever Python 3 the machine has (so: the standard library, syntax that Python 3.6 reads, and quotes around the
types that it does not know), finds one that the project supports, and does nothing when .venv already is what
pyproject.toml and constraints.txt ask for.
"""
# ruff: noqa: S603, T201  (its arguments are its own; printing is what it is for)

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSIONS = ((3, 11), (3, 12))
CANDIDATES = ("python3.11", "python3.12", "python3", "python")
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "likeness-installed.json"
ABOUT = """
import importlib.util as util, json, sys
print(json.dumps([sys.version_info[:2]] + [util.find_spec(m) is not None for m in ("venv", "ensurepip", "pip")]))
"""


class Interpreter:
    """A Python and what it has; ``version`` is None where it does not run."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.version: tuple[int, ...] | None = None
        self.has_venv, self.has_ensurepip, self.has_pip = False, False, False
        try:
            about = subprocess.check_output([self.path, "-c", ABOUT], stderr=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError):
            return
        version, self.has_venv, self.has_ensurepip, self.has_pip = json.loads(about.decode())
        self.version = tuple(version)

    def dotted(self) -> str:
        """``3.11``."""
        return ".".join(map(str, self.version or ()))

    def trouble(self) -> str:
        """Why it can't be used; empty where it can."""
        name = f"Python {self.dotted()} ({self.path})"
        if self.version not in VERSIONS:
            return name + " is not 3.11 or 3.12"
        if not self.has_venv or not (self.has_ensurepip or self.has_pip):
            return name + " has no venv, or neither ensurepip nor pip (Debian: apt install python3-venv)"
        return ""


def main() -> None:
    """Make, complete or leave the environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dev", action="store_true", help="with what tests and linters need")
    parser.add_argument("--python", default="", help="the interpreter to use; default: the first that fits")
    arguments = parser.parse_args()
    installed = read_stamp()
    is_dev = arguments.dev or bool(installed.get("is_dev"))
    wanted = {"files": fingerprint(), "is_dev": is_dev, "venv": str(VENV)}
    is_usable = installed.get("venv") == str(VENV) and Interpreter(venv_python()).version in VERSIONS
    if is_usable and installed == wanted:
        return
    outer = find_python(arguments.python)
    if not is_usable:
        make_venv(outer)
    install(outer, is_dev)
    STAMP.write_text(json.dumps(wanted), encoding="utf-8")
    say("The environment is ready.")


def find_python(asked: str) -> Interpreter:
    """The first interpreter of a supported version that can make environments."""
    troubles: list[str] = []
    for name in [asked] if asked else [sys.executable, *CANDIDATES]:
        path = shutil.which(name)
        python = Interpreter(path) if path else None
        if python is None or python.version is None:
            continue
        trouble = python.trouble()
        if not trouble:
            return python
        if trouble not in troubles:
            troubles.append(trouble)
    found = "; ".join(troubles) or f"no Python {asked} that runs"
    raise failure(
        f"Likeness needs Python 3.11 or 3.12 with venv and pip. Found: {found}.\n"
        "Install one, or name the one to use: make PYTHON=/path/to/python3.11 …"
    )


def make_venv(outer: Interpreter) -> None:
    """An empty environment in .venv, whatever was there."""
    say(f"Making .venv with Python {outer.dotted()} …")
    # Debian's python3 and python3-pip come without ensurepip; then the outer pip installs into the environment.
    without_pip = [] if outer.has_ensurepip else ["--without-pip"]
    run([outer.path, "-m", "venv", "--clear", *without_pip, str(VENV)])


def install(outer: Interpreter, is_dev: bool) -> None:
    """The project, editable, and its dependencies at the versions of constraints.txt."""
    inner = venv_python()
    pip = [inner, "-m", "pip"] if Interpreter(inner).has_pip else [outer.path, "-m", "pip", "--python", inner]
    what = str(ROOT) + ("[dev]" if is_dev else "")
    say("Installing the pinned dependencies. The first time they are downloaded, which takes minutes …")
    options = ["--disable-pip-version-check", "--no-compile", "--constraint", str(ROOT / "constraints.txt")]
    run([*pip, "install", *options, *os.environ.get("PIP_ARGS", "").split(), "--editable", what])
    say("Compiling …")  # pip would do it on one core; a file that can't be compiled (a template) is no error
    subprocess.call([inner, "-m", "compileall", "-q", "-q", "-j", "0", str(VENV / "lib")])


def venv_python() -> str:
    """The environment's interpreter, there or not."""
    return str(VENV / "bin" / "python")


def read_stamp() -> "dict[str, object]":
    """What a finished install wrote down; empty where there is none."""
    try:
        stamp: dict[str, object] = json.loads(STAMP.read_text(encoding="utf-8"))
        return stamp
    except (OSError, ValueError):
        return {}


def fingerprint() -> str:
    """Changes when what is to be installed changes."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def run(command: "list[str]") -> None:
    """Run a command, its output shown; end here where it fails."""
    status = subprocess.call(command)
    if status:
        raise failure(f"This failed with status {status}: {' '.join(command)}")


def say(text: str) -> None:
    """Tell people what is going on."""
    print(text, flush=True)


def failure(text: str) -> SystemExit:
    """What ends this program with a message."""
    return SystemExit("\n" + text)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
