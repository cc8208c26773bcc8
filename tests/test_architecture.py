"""The walls of the house: which package may know which, and whose process stays light.

Two ways of looking, because each misses something. The source shows imports inside functions, which a run may not
reach; a fresh interpreter shows what an innocent import drags in through others.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("engine", "serve_app")


def modules(package: str) -> list[str]:
    """Dotted names of all modules below a package, found as files."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


def source_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported_names(module: str) -> Iterator[str]:
    """Every module that a source names in an import, wherever the import stands."""
    for node in ast.walk(ast.parse(source_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute here, so that a reader sees the layer"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def loaded_by(module: str) -> set[str]:
    """Top-level packages in ``sys.modules`` after importing one module in a fresh interpreter."""
    code = f"import json, sys; import {module}; print(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def guilty(modules: Iterable[str], forbidden: Set[str]) -> list[str]:
    """Which of the modules load something forbidden. One interpreter for all; one each only where that is so."""
    suspects = list(modules)
    assert suspects
    if not loaded_by("; import ".join(suspects)) & forbidden:
        return []
    return [f"{module} loads {found}" for module in suspects if (found := sorted(loaded_by(module) & forbidden))]


ARROWS = (
    # (who, must not name)
    ("engine", ("serve_app", "ray", "fastapi", "starlette", "uvicorn", "pydantic", "httpx")),
    ("engine.model", ("engine.weights", "engine.engine", "engine.runner", "engine.scheduler", "engine.loop")),
    ("engine.sampling", ("engine.model", "engine.weights", "engine.runtime", "engine.engine")),
    ("serve_app.local", ("torch", "diffusers", "transformers", "fastapi", "engine")),
    ("serve_app.scaling", ("torch",)),
    ("serve_app.scaling.decision", ("ray", "numpy", "pydantic", "fastapi")),
)


@pytest.mark.parametrize(("layer", "forbidden"), ARROWS, ids=[layer for layer, _ in ARROWS])
def test_arrows_point_one_way_also_inside_functions(layer: str, forbidden: tuple[str, ...]) -> None:
    wrong = [
        f"{module} imports {name}"
        for module in modules(layer.partition(".")[0])
        if below(module, layer)
        for name in imported_names(module)
        if any(below(name, package) for package in forbidden)
    ]
    assert wrong == []


HEAVY = frozenset({"torch", "diffusers", "transformers"})
SERVING = frozenset({"ray", "fastapi", "serve_app", "starlette", "uvicorn", "httpx"})
WITHOUT_TORCH = (
    "errors",
    "request",
    "profile",
    "config",
    "protocol",
    "fake",
    "loop",
    "ledger",
    "scheduler",
    "cost_model",
    "cost_meter",
)


def engine_modules_without_torch() -> list[str]:
    plain = [f"engine.{name}" for name in WITHOUT_TORCH]
    return [
        m for m in modules("engine") if m in plain or below(m, "engine.face") or below(m, "engine.sampling.schedule")
    ]


def test_decisions_are_plain_python() -> None:
    assert guilty(engine_modules_without_torch(), HEAVY | SERVING) == []


def test_no_module_of_the_engine_drags_serving_in() -> None:
    # httpx is left out: huggingface_hub brings it, for downloads
    assert loaded_by("; import ".join(modules("engine"))) & (SERVING - {"httpx"}) == set()


LIGHT = (
    *(f"serve_app.{name}" for name in ("app", "ingress", "settings", "contract", "config_file", "stages", "errors")),
    *(f"serve_app.{name}" for name in ("client", "client_command", "cli", "ray_backend", "face_stage", "flux_replica")),
    "serve_app.scaling.decision",
)


def test_no_torch_outside_the_replica_that_draws() -> None:
    assert guilty((name for name in LIGHT if name in modules("serve_app")), HEAVY) == []


def test_the_client_needs_no_ray_and_no_server() -> None:
    client = ("serve_app.client", "serve_app.client_command", "serve_app.cli")
    assert guilty(client, {"ray", "fastapi", "starlette", "uvicorn", "pydantic", "numpy", "yaml"}) == []


@pytest.mark.parametrize("module", ["serve_app.local.init", "serve_app.local.contain"])
def test_what_must_start_at_once_needs_the_standard_library_alone(module: str) -> None:
    assert loaded_by(module) <= set(sys.stdlib_module_names) | {"serve_app"} | loaded_by("sys")


def test_the_http_application_runs_without_ray() -> None:
    assert guilty(("serve_app.ingress", "serve_app.contract", "serve_app.settings", "serve_app.stages"), {"ray"}) == []


def test_a_guilty_module_is_found_and_named() -> None:
    assert guilty(("json", "sqlite3"), {"sqlite3"}) == ["sqlite3 loads ['sqlite3']"]


def test_every_module_has_a_docstring() -> None:
    missing = [
        module
        for package in PACKAGES
        for module in modules(package)
        if ast.get_docstring(ast.parse(source_of(module).read_text(encoding="utf-8"))) is None
    ]
    assert missing == []


def test_every_pin_of_the_project_is_what_the_constraints_install() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["gpu"], *extras["identity"], *extras["tracing"], *extras["dev"]]
    asked = [requirement for requirement in asked if not requirement.startswith("likeness[")]  # the extras themselves
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    locked = dict(line.lower().replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))
    for requirement in asked:
        name, _, version = requirement.lower().partition(";")[0].partition("==")
        name = name.partition("[")[0].replace("_", "-")
        assert name in locked, f"{name} is missing in constraints.txt"
        assert version in ("", locked[name]), f"{requirement}, but constraints.txt has {locked[name]}"
