"""PromQL that several panels share. A panel's queries map the legend of a curve to its expression."""

from __future__ import annotations

from typing import Final

W: Final = "[$__rate_interval]"
"""Grafana's window for rates: long enough for the scrape interval, short enough for the zoom."""


def by_quantile(metric: str, *quantiles: float, where: str = "") -> dict[str, str]:
    """Quantiles of a histogram, each a curve."""
    rate = f"sum by (le) (rate({metric}_bucket{where}{W}))"
    return {f"p{round(100 * q)}": f"histogram_quantile({q}, {rate})" for q in quantiles}


def heat(metric: str, where: str = "") -> dict[str, str]:
    """A histogram over time."""
    return {"{{le}}": f"sum by (le) (rate({metric}_bucket{where}{W}))"}


def ratio(part: str, whole: str, by: str = "") -> str:
    """A rate over a rate, and nothing where nothing happened."""
    return f"sum{by} (rate({part}{W})) / (sum{by} (rate({whole}{W})) > 0)"
