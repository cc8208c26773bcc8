"""How far a benchmark is, for whoever watches it."""

from __future__ import annotations

import sys
import time

_STARTED_S = time.monotonic()


def tell(text: str) -> None:
    """One line on standard error, with the seconds since the start."""
    print(f"{time.monotonic() - _STARTED_S:7.1f} s  {text}", file=sys.stderr, flush=True)
