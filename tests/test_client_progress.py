"""The moving line: redrawn on a terminal, sparse in a log, silent where asked."""

from __future__ import annotations

import io
import itertools

from serve_app.progress import BAR_WIDTH, CLEAR_LINE, LOG_EVERY_S, REDRAW_S, ProgressLine, bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_log_gets_a_line_for_each_text_and_then_one_once_in_a_while() -> None:
    stream, clock = io.StringIO(), Clock()
    line = ProgressLine(stream, "drawing", clock=clock)
    for now_s in (0.0, 1.0, LOG_EVERY_S - 1, LOG_EVERY_S, LOG_EVERY_S + 1):
        clock.now_s = now_s
        line.draw()
    line.update("drawing")
    line.update("waiting")
    assert stream.getvalue().splitlines() == ["   0 s  drawing", "  30 s  drawing", "  31 s  waiting"]


def test_a_terminal_gets_one_line_that_is_redrawn_and_vanishes() -> None:
    stream, clock = Terminal(), Clock()
    with ProgressLine(stream, "drawing", clock=clock) as line:
        clock.now_s = 12.0
        line.draw()
    drawn = stream.getvalue()
    assert "\n" not in drawn
    assert "  12 s  drawing" in drawn
    assert drawn.endswith(CLEAR_LINE)


def test_a_long_text_never_wraps() -> None:
    stream = Terminal()
    ProgressLine(stream, "x" * 1000, clock=Clock()).draw()
    assert len(stream.getvalue().removeprefix(CLEAR_LINE)) < 1000


def test_quiet_is_quiet() -> None:
    for stream in (io.StringIO(), Terminal()):
        with ProgressLine(stream, "drawing", is_quiet=True, clock=Clock()) as line:
            line.update("waiting")
        assert stream.getvalue() == ""


def test_the_bar_walks_to_and_fro_at_one_width() -> None:
    bars = [bar(step * REDRAW_S + 1e-6) for step in range(100)]
    assert {len(text) for text in bars} == {BAR_WIDTH + 2}
    assert len(set(bars)) > 4
    assert all(abs(a.index("=") - b.index("=")) == 1 for a, b in itertools.pairwise(bars))
