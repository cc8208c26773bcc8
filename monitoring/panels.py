"""Dashboards as data, and what Grafana makes of them: its JSON model, laid out by itself.

Sources: https://grafana.com/docs/grafana/latest/visualizations/dashboards/build-dashboards/view-dashboard-json-model/
and the package grafana-foundation-sdk, whose types the tests hold the result against.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, Literal

Kind = Literal["timeseries", "stat", "heatmap", "bars"]
Json = dict[str, Any]

SCHEMA_VERSION: Final = 39
"""Grafana 10.2 and later read it, and migrate it by themselves."""

GRID_COLUMNS: Final = 24
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One picture.

    Attributes:
        title: what it shows.
        text: what to read out of it, for somebody who sees it for the first time.
        unit: Grafana's name of the unit.
        queries: PromQL by legend, in which ``{{label}}`` stands for a label's value.
        kind: curves, the newest values as numbers, a histogram over time, or a histogram over the whole time shown.
        is_stacked: curves on top of each other, where their sum means something.
        max_value: the axis' end, where there is a natural one.
        limit: legend of the query that is a limit and not a measurement: drawn dashed and red.
        columns, rows: size on the grid of 24 columns.
    """

    title: str
    text: str
    queries: Mapping[str, str]
    unit: str = "short"
    kind: Kind = "timeseries"
    is_stacked: bool = False
    max_value: float | None = None
    limit: str = ""
    columns: int = 8
    rows: int = 8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Panels under a heading, from left to right and top to bottom."""

    title: str
    panels: tuple[Panel, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Dashboard:
    """One page. ``uid`` is its address and the name of its file."""

    uid: str
    title: str
    text: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All of them."""
        return tuple(panel for row in self.rows for panel in row.panels)


def dashboard_json(dashboard: Dashboard) -> Json:
    """The dashboard as Grafana stores it."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.text,
        "tags": ["likeness"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "timezone": "browser",
        "graphTooltip": 1,  # the same moment in all panels
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_datasource_choice()]},
        "annotations": {"list": [_alerts()]},
        "links": [_other_dashboards()],
        "panels": _laid_out(dashboard),
    }


def _laid_out(dashboard: Dashboard) -> list[Json]:
    panels: list[Json] = []
    top = 0
    for row in dashboard.rows:
        panels.append(_row(row, id_=len(panels) + 1, top=top))
        top, left, height = top + 1, 0, 0
        for panel in row.panels:
            if left + panel.columns > GRID_COLUMNS:
                top, left, height = top + height, 0, 0
            position = {"x": left, "y": top, "w": panel.columns, "h": panel.rows}
            panels.append(_panel(panel, id_=len(panels) + 1, position=position))
            left, height = left + panel.columns, max(height, panel.rows)
        top += height
    return panels


def _row(row: Row, *, id_: int, top: int) -> Json:
    position = {"x": 0, "y": top, "w": GRID_COLUMNS, "h": 1}
    return {"id": id_, "type": "row", "title": row.title, "collapsed": False, "gridPos": position, "panels": []}


def _panel(panel: Panel, *, id_: int, position: Json) -> Json:
    defaults: Json = {"unit": panel.unit, "min": 0}
    if panel.max_value is not None:
        defaults["max"] = panel.max_value
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 40 if panel.is_stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.is_stacked else "none", "group": "A"},
        }
    return {
        "id": id_,
        "type": {"bars": "bargauge"}.get(panel.kind, panel.kind),
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": defaults, "overrides": [_limit_style(panel.limit)] if panel.limit else []},
        "options": _options(panel),
        "targets": [_target(panel, *query, index) for index, query in enumerate(panel.queries.items())],
    }


def _options(panel: Panel) -> Json:
    last: Json = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    match panel.kind:
        case "timeseries":
            is_many = len(panel.queries) > 1 or "{{" in next(iter(panel.queries))
            legend = {"displayMode": "list", "placement": "bottom", "showLegend": is_many, "calcs": []}
            return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
        case "stat":
            return {"reduceOptions": last, "colorMode": "none", "graphMode": "area", "textMode": "auto"}
        case "heatmap":
            colour = {"mode": "scheme", "scheme": "Blues", "steps": 64, "reverse": False}
            return {"calculate": False, "color": colour, "yAxis": {"unit": panel.unit}, "legend": {"show": True}}
        case "bars":
            return {"reduceOptions": last, "orientation": "vertical", "displayMode": "basic", "showUnfilled": False}


def _target(panel: Panel, legend: str, expr: str, index: int) -> Json:
    return {
        "refId": chr(ord("A") + index),
        "datasource": DATASOURCE,
        "expr": expr,
        "legendFormat": legend or "__auto",
        # Buckets as Grafana wants them: one series each, cumulative counts taken apart by Grafana itself.
        "format": "heatmap" if panel.kind in ("heatmap", "bars") else "time_series",
        "instant": panel.kind == "bars",
        "range": panel.kind != "bars",
    }


def _limit_style(legend: str) -> Json:
    properties: list[Json] = [
        {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
        {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 8]}},
        {"id": "custom.fillOpacity", "value": 0},
        {"id": "custom.stacking", "value": {"mode": "none", "group": "B"}},
    ]
    return {"matcher": {"id": "byName", "options": legend}, "properties": properties}


def _datasource_choice() -> Json:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}


def _alerts() -> Json:
    return {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Likeness.*", alertstate="firing"}',
        "titleFormat": "{{alertname}}",
    }


def _other_dashboards() -> Json:
    return {
        "title": "Likeness",
        "type": "dashboards",
        "tags": ["likeness"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "",
        "url": "",
    }
