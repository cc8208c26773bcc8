"""Where a benchmark ran: what has to stand beside its figures."""

from __future__ import annotations

import os
import platform
from typing import Any


def machine() -> dict[str, Any]:
    """The machine, and how busy it is now: averages over 1, 5 and 15 minutes."""
    return {
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load average": [round(value, 2) for value in os.getloadavg()],
    }
