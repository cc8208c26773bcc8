"""Reports as one HTML file that needs nothing from anywhere else: plain text, tables, pictures inside the file."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from string import Template
from typing import Final

_PAGE: Final = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c }
  h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; border-top: 1px solid #ccc; padding-top: 1rem; margin-top: 2rem }
  code, pre { font: 13px/1.45 ui-monospace, monospace; background: #f4f4f2; border-radius: 4px }
  code { padding: .1em .3em } pre { padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere }
  .wide { overflow-x: auto }
  table { border-collapse: collapse } td, th { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #e3e3e3;
  text-align: right; vertical-align: top; font-variant-numeric: tabular-nums } td:first-child, th:first-child {
  text-align: left } img { max-width: 100% } .note { color: #555 }
  figure { margin: 0; display: inline-block; vertical-align: top } figcaption { font-size: 13px; color: #555 }
</style>
<h1>$title</h1>
$body
</html>
""")


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page. ``parts`` are HTML already, from the functions below."""
    return _PAGE.substitute(title=text(title), body="\n".join(parts))


def text(value: object) -> str:
    """Anything as text that can't be read as markup."""
    return html.escape(str(value))


def heading(title: str) -> str:
    """A section begins."""
    return f"<h2>{text(title)}</h2>"


def paragraph(words: str, *, is_note: bool = False) -> str:
    """A paragraph; a note is shown paler."""
    return f'<p class="note">{text(words)}</p>' if is_note else f"<p>{text(words)}</p>"


def code(words: str) -> str:
    """A command, or anything else that is to be copied."""
    return f"<pre>{text(words)}</pre>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of text; numbers come formatted. The first column names the row."""
    cells = "".join(f"<th>{text(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{text(value)}</td>' for value in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{cells}</tr>{body}</table></div>'


def picture(data: bytes, media_type: str, *, alt: str, width_px: int | None = None) -> str:
    """A picture inside the page."""
    url = f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
    width = f' width="{width_px}"' if width_px else ""
    return f'<img src="{url}" alt="{text(alt)}"{width}>'
