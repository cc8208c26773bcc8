"""One line on stderr that shows people that something is going on, and for how long.

On a terminal the line is redrawn several times a second; elsewhere (a log, a pipe) a new line appears when the text
changes and then once in a while, so that nobody reads a thousand of them.
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

REDRAW_S = 0.1
LOG_EVERY_S = 30.0
BAR_WIDTH = 12
BAR_BLOCK = 4
CLEAR_LINE = "\r\x1b[2K"  # ECMA-48: carriage return, erase in line


class ProgressLine:
    """Shows ``text`` and the seconds since the start until the ``with`` block ends, then vanishes from a terminal.

    Args:
        stream: where to write.
        text: what is going on.
        is_quiet: write nothing at all.
        clock: seconds, monotonic.
    """

    def __init__(
        self, stream: TextIO, text: str, *, is_quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._is_quiet = is_quiet
        self._is_terminal = stream.isatty()
        self._clock = clock
        self._lock = threading.Lock()
        self._text = text
        self._fraction: float | None = None
        self._started_s = clock()
        self._last_logged_s: float | None = None
        self._stopping = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)

    def update(self, text: str, fraction: float | None = None, *, is_count: bool = False) -> None:
        """Show another text from now on, and how much is done, 0 to 1, where that is known.

        A mere count does not deserve a line of its own where lines stay.
        """
        with self._lock:
            self._fraction = fraction
            if text != self._text:
                self._text = text
                if not is_count:
                    self._last_logged_s = None
        self.draw()

    def draw(self) -> None:
        """Write what is due now."""
        if self._is_quiet:
            return
        with self._lock:
            now_s = self._clock()
            if self._is_terminal:
                elapsed_s = now_s - self._started_s
                shown = bar(elapsed_s) if self._fraction is None else filled_bar(self._fraction)
                self._stream.write(CLEAR_LINE + self._fitted(shown + " " + self._line(now_s)))
            elif self._last_logged_s is None or now_s - self._last_logged_s >= LOG_EVERY_S:
                self._last_logged_s = now_s
                self._stream.write(self._line(now_s) + "\n")
            self._stream.flush()

    def note(self, text: str) -> None:
        """A line that stays, above the moving one."""
        with self._lock:
            self._stream.write((CLEAR_LINE if self._is_terminal and not self._is_quiet else "") + text + "\n")
            self._stream.flush()

    def __enter__(self) -> ProgressLine:
        self.draw()
        if self._is_terminal or not self._is_quiet:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._ticker.is_alive():
            self._ticker.join()
        if self._is_terminal and not self._is_quiet:
            self._stream.write(CLEAR_LINE)
            self._stream.flush()

    def _tick(self) -> None:
        while not self._stopping.wait(REDRAW_S if self._is_terminal else 1.0):
            self.draw()

    def _line(self, now_s: float) -> str:
        return f"{now_s - self._started_s:4.0f} s  {self._text}"

    def _fitted(self, line: str) -> str:
        return line[: shutil.get_terminal_size().columns - 1]  # a wrapped line could not be erased


def bar(elapsed_s: float) -> str:
    """A block that walks to and fro: work whose end is not known. One step a redraw."""
    room = BAR_WIDTH - BAR_BLOCK
    position = int(elapsed_s / REDRAW_S) % (2 * room)
    position = position if position <= room else 2 * room - position
    return "[" + " " * position + "=" * BAR_BLOCK + " " * (room - position) + "]"


def filled_bar(fraction: float) -> str:
    """A bar that fills from the left: ``fraction`` of the work is done, 0 to 1."""
    num_filled = math.floor(BAR_WIDTH * fraction)
    return "[" + "=" * num_filled + " " * (BAR_WIDTH - num_filled) + "]"
