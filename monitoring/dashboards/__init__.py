"""The four dashboards: what is shown, in which order, and what to read out of it."""

from __future__ import annotations

from typing import Final

from monitoring.dashboards.engine import ENGINE
from monitoring.dashboards.identity import IDENTITY
from monitoring.dashboards.scaling import SCALING
from monitoring.dashboards.service import SERVICE

DASHBOARDS: Final = (SERVICE, ENGINE, SCALING, IDENTITY)
