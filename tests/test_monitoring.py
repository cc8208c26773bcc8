"""What is written for Prometheus and Grafana: in step with its sources, with each other and with the documentation."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanaDashboard

from monitoring.dashboards import DASHBOARDS
from monitoring.generate import DASHBOARD_FOLDER, files
from monitoring.panels import GRID_COLUMNS, Dashboard, dashboard_json
from monitoring.start import CONFIG, config_for
from serve_app.metrics.metric import PREFIX
from serve_app.metrics.table import TABLE
from tests.prometheus_server import needs_prometheus, program

FOLDER = CONFIG.parent
RULE_FILES = tuple(FOLDER / name for name in ("objectives.yml", "recording.yml", "alerts.yml"))
RULES = [rule for path in RULE_FILES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
RUNBOOK = Path(__file__).parents[1] / "docs" / "alerts.md"


def promtool(*arguments: object) -> str:
    done = subprocess.run(
        [program("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False, cwd=FOLDER
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expressions() -> list[str]:
    """All PromQL of this project."""
    of_panels = [expr for dashboard in DASHBOARDS for panel in dashboard.panels for expr in panel.queries.values()]
    return [rule["expr"] for rule in RULES] + of_panels


# -- Prometheus --------------------------------------------------------------------------------------------------------


@needs_prometheus
def test_prometheus_accepts_the_configuration_and_every_rule(tmp_path: Path) -> None:
    promtool("check", "config", CONFIG)
    promtool("check", "config", config_for(["127.0.0.1:8000"], tmp_path, scrape_s=1))
    promtool("check", "rules", *RULE_FILES)


@needs_prometheus
def test_every_rule_has_its_value_every_alert_fires_and_clears() -> None:
    assert "SUCCESS" in promtool("test", "rules", FOLDER / "rules_test.yml")
    tests = yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]
    checked = [check["expr"].partition("{")[0] for test in tests for check in test.get("promql_expr_test", [])]
    assert set(checked) >= RECORDED
    for name in ALERTS:
        fired = [
            bool(check.get("exp_alerts"))
            for test in tests
            if test["name"] == name
            for check in test["alert_rule_test"]
            if check["alertname"] == name
        ]
        assert fired == [False, True, False], f"{name}: silent, then fires, then clears"


def test_every_alert_has_its_section_in_the_runbook() -> None:
    sections = re.findall(r"^## (\w+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    assert sections == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"docs/alerts.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].endswith(".")


def test_every_metric_in_use_exists_with_the_labels_in_use() -> None:
    known = {
        metric.full_name + suffix: metric
        for metric in TABLE.values()
        for suffix in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))
    }
    for expr in expressions():
        for name, _, selector in re.findall(r"\b(likeness[_:][a-z0-9_:]*)(\{([^}]*)\})?", expr):
            if ":" in name:
                assert name in RECORDED, f"{name} in {expr}"
                continue
            assert name in known, f"{name} in {expr}"
            for label in re.findall(r"(\w+)\s*(?:=|!=|=~|!~)", selector):
                assert label in (*known[name].labels, "le"), f"{label} of {name} in {expr}"


def test_every_metric_is_seen_somewhere() -> None:
    used = " ".join(expressions())
    unseen = {name for name in TABLE if not re.search(rf"\b{PREFIX}{name}(_total|_bucket|_sum|_count)?\b", used)}
    assert unseen == {"device_seconds_charged", "client_requests"}, "they are for bills and for questions asked by hand"


# -- Grafana -----------------------------------------------------------------------------------------------------------


def test_generated_files_are_what_their_sources_say() -> None:
    for path, text in files():
        assert path.read_text() == text, f"{path.name}: run python -m monitoring.generate"
    assert {path.name for path in DASHBOARD_FOLDER.iterdir()} == {f"{dashboard.uid}.json" for dashboard in DASHBOARDS}


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_grafana_s_own_types_know_everything_a_dashboard_says(dashboard: Dashboard) -> None:
    """What they don't know, they drop on the way in: so nothing may be missing on the way out."""
    ours = dashboard_json(dashboard)
    del ours["annotations"]["list"][0]["titleFormat"]  # Prometheus' own; Grafana's general type leaves it open
    assert lost(ours, as_grafana_says(ours)) == []


def test_a_word_that_grafana_does_not_know_is_noticed() -> None:
    for where in ("options", "fieldConfig", "gridPos"):
        ours = dashboard_json(DASHBOARDS[0])
        ours["panels"][1][where]["colour"] = "blue"
        assert any("colour" in word for word in lost(ours, as_grafana_says(ours))), where
    ours = dashboard_json(DASHBOARDS[0])
    ours["panels"][1]["targets"][0]["colour"] = "blue"
    assert any("colour" in word for word in lost(ours, as_grafana_says(ours)))


def as_grafana_says(dashboard: Any) -> Any:
    """A dashboard through Grafana's types of dashboards, panels and Prometheus' queries, and back."""
    register_default_plugins()
    return json.loads(json.dumps(GrafanaDashboard.from_json(dashboard), default=lambda value: value.to_json()))


def lost(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where ``theirs`` lacks, or has other than, what ``ours`` has."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [where for key in ours for where in lost(ours[key], theirs.get(key), f"{path}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [where for i in range(len(ours)) for where in lost(ours[i], theirs[i], f"{path}[{i}]")]
    return [] if ours == theirs else [f"{path}: {ours!r} became {theirs!r}"]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_panels_lie_beside_each_other_and_explain_themselves(dashboard: Dashboard) -> None:
    model = dashboard_json(dashboard)
    taken: set[tuple[int, int]] = set()
    for panel in model["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= GRID_COLUMNS
        taken |= cells
    assert len({panel["id"] for panel in model["panels"]}) == len(model["panels"])
    for panel in dashboard.panels:
        assert panel.text.endswith("."), panel.title
        assert not panel.limit or panel.limit in panel.queries, panel.title
