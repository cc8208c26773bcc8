"""A progress bar on stderr for work on big files: how far, how fast, how long still."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from engine.weights.report import human_bytes
from serve_app.progress import CLEAR_LINE, REDRAW_S

MAX_BAR_WIDTH = 24
MIN_BAR_WIDTH = 6


class ByteProgress:
    """Draws one bar for each piece of work on a terminal; elsewhere it only writes notes. Implements ``Reporter``.

    Args:
        stream: where to write.
        clock: seconds, monotonic.
    """

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._clock = clock
        self._text = ""
        self._initial_bytes = self._done_bytes = self._total_bytes = 0
        self._began_s = self._drawn_s = clock()

    def begin(self, text: str, *, done_bytes: int, total_bytes: int) -> None:
        """See :class:`engine.weights.report.Reporter`."""
        self._text = text
        self._initial_bytes = self._done_bytes = done_bytes
        self._total_bytes = total_bytes
        self._began_s = self._clock()
        self._draw()

    def advance(self, num_bytes: int) -> None:
        """See :class:`engine.weights.report.Reporter`."""
        self._done_bytes += num_bytes
        if num_bytes < 0:  # started over: bytes from before say nothing of the speed
            self._initial_bytes, self._began_s = self._done_bytes, self._clock()
        if self._clock() - self._drawn_s >= REDRAW_S:
            self._draw()

    def note(self, text: str) -> None:
        """See :class:`engine.weights.report.Reporter`. Notes stay, also where there is no bar."""
        self._stream.write((CLEAR_LINE if self._is_terminal else "") + text + "\n")
        self._stream.flush()

    def __enter__(self) -> ByteProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_terminal:
            self._stream.write(CLEAR_LINE)
            self._stream.flush()

    def _draw(self) -> None:
        self._drawn_s = self._clock()
        if self._is_terminal:
            # A wrapped line could not be erased.
            self._stream.write(CLEAR_LINE + self._line(shutil.get_terminal_size().columns - 1))
            self._stream.flush()

    def _line(self, width: int) -> str:
        """Numbers first; the bar gets what room they leave."""
        share = self._done_bytes / self._total_bytes if self._total_bytes else 1.0
        done, total = human_bytes(self._done_bytes), human_bytes(self._total_bytes)
        if done.split()[1] == total.split()[1]:
            done = done.split()[0]
        line = f"{self._text} {share:4.0%}  {done} of {total}{self._speed()}"
        bar_width = min(MAX_BAR_WIDTH, width - len(line) - len(" []"))
        if bar_width >= MIN_BAR_WIDTH:
            line += " [" + ("=" * int(share * bar_width)).ljust(bar_width) + "]"
        return line[:width]

    def _speed(self) -> str:
        seconds = self._drawn_s - self._began_s
        num_bytes = self._done_bytes - self._initial_bytes
        if seconds < 1.0 or num_bytes <= 0:
            return ""
        rate = num_bytes / seconds
        left_s = (self._total_bytes - self._done_bytes) / rate
        left = f"{left_s:.0f} s" if left_s < 120 else f"{left_s / 60:.0f} min"
        return f"  {human_bytes(rate)}/s  {left} left"
