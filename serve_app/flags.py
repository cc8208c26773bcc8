"""Values of command-line flags that more than one command takes, for ``type=`` of argparse."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def finite(text: str) -> float:
    """A number that JSON has a word for."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def positive(text: str) -> float:
    """A number above 0, such as seconds to wait."""
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def whole(*, least: int) -> Callable[[str], int]:
    """A whole number that is not below ``least``."""

    def number(text: str) -> int:  # argparse shows its name: "invalid number value"
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value

    return number
