"""``python -m monitoring.generate``: writes Grafana's dashboards and the table in docs/monitoring.md anew.

A test holds that what is written is what the sources say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from monitoring.dashboards import DASHBOARDS
from monitoring.panels import dashboard_json
from serve_app.metrics.metric import Metric
from serve_app.metrics.table import TABLE

HERE: Final = Path(__file__).parent
DASHBOARD_FOLDER: Final = HERE / "grafana" / "dashboards"
PAGE: Final = HERE.parent / "docs" / "monitoring.md"
BEGIN: Final = "<!-- metrics: written by python -m monitoring.generate -->\n"
END: Final = "<!-- end of metrics -->\n"


def files() -> Iterator[tuple[Path, str]]:
    """Every generated file and what it holds."""
    for dashboard in DASHBOARDS:
        text = json.dumps(dashboard_json(dashboard), indent=1) + "\n"
        yield DASHBOARD_FOLDER / f"{dashboard.uid}.json", text
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    yield PAGE, before + BEGIN + metrics_table() + END + after


def metrics_table() -> str:
    """All metrics as a Markdown table."""
    lines = ["| metric | kind | labels | |", "|---|---|---|---|"]
    lines += [f"| `{m.full_name}` | {m.kind} | {_labels(m)} | {m.text} |" for m in TABLE.values()]
    return "\n".join(lines) + "\n"


def _labels(metric: Metric) -> str:
    return ", ".join(f"`{label}`" for label in metric.labels)


def main() -> None:
    """Write all files."""
    for path, text in files():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
