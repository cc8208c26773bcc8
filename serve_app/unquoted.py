"""Errors that nobody expected are logged with what they say, by us and by Ray; and some libraries quote their input."""

from __future__ import annotations

import re
import traceback
from typing import Final

MIN_WORD_CHARS: Final = 6
"""What is shorter would be found in every traceback, and says nothing of anybody."""

_MAX_QUOTES: Final = 3
"""A quotation of a quotation of a quotation."""

_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U00(?:0[0-9a-f]|10)[0-9a-f]{4}|.)", re.DOTALL)
_ESCAPED: Final = {"n": "\n", "r": "\r", "t": "\t"}


def unquoted(error: Exception, *words: str) -> Exception:
    """The error; or where its text, or that of what caused it, quotes one of these words, another in its place.

    The other one says what class it was and keeps the places that it came through.

    Args:
        words: what a caller wrote, such as a prompt.
    """
    told = "".join(traceback.format_exception(error))
    long_words = [word for word in words if len(word) >= MIN_WORD_CHARS]
    for _ in range(1 + _MAX_QUOTES):
        if any(word in told for word in long_words):
            message = f"{type(error).__name__}, whose message quotes the request and is left out"
            return QuotingError(message).with_traceback(error.__traceback__)
        told = _ESCAPE.sub(_plain, told)
    return error


class QuotingError(RuntimeError):
    """An error whose own words may not be shown."""


def _plain(escape: re.Match[str]) -> str:
    """What an escape of Python's ``repr`` stands for."""
    what = escape[1]
    return chr(int(what[1:], 16)) if len(what) > 1 else _ESCAPED.get(what, what)
