"""``/docs``: the API's documentation as one page that needs nothing from anywhere else.

Written from the OpenAPI description, so that it can't say anything else. FastAPI's own page loads its script from a
public server: blank on a network without one, and not what a page that handles faces should do.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from string import Template
from typing import Any, Final

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page may load nothing, and speak to this service only."""

_PAGE: Final = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c }
  h2 { border-top: 1px solid #ccc; padding-top: 1.5rem } h2 code { background: none; padding: 0 }
  code, pre, textarea { font: 13px/1.45 ui-monospace, monospace; background: #f4f4f2; border-radius: 4px }
  code { padding: .1em .3em } pre { padding: .7rem; overflow: auto; max-height: 18rem; white-space: pre-wrap;
  overflow-wrap: anywhere } textarea { width: 100%; box-sizing: border-box; height: 14rem; border: 1px solid #bbb }
  table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top; padding: .3rem .6rem;
  border-bottom: 1px solid #e3e3e3 } summary { cursor: pointer } button, select { font: inherit }
  .ok { color: #17692f } .bad { color: #a3261c } img { max-width: 100% }
</style>
<h1>$title</h1>
$introduction
$operations
<p>The machine's view of all this: <a href="openapi.json">openapi.json</a>.</p>
<script>
const $$ = (id) => document.getElementById(id);
if ($$("try")) {
  const examples = JSON.parse($$("examples").textContent);
  const fill = () => { $$("body").value = JSON.stringify(examples[$$("example").value], null, 1); };
  const choose = async (file) => {
    const body = JSON.parse($$("body").value);
    const reader = new FileReader();
    reader.onload = () => { body.reference_image = reader.result; $$("body").value = JSON.stringify(body, null, 1); };
    reader.readAsDataURL(file);
  };
  $$("example").onchange = fill;
  $$("file").onchange = (event) => choose(event.target.files[0]);
  $$("send").onclick = async () => {
    $$("answer").textContent = "…";
    const headers = {"Content-Type": "application/json", "Accept": $$("accept").value};
    if ($$("key")) headers["Authorization"] = "Bearer " + $$("key").value;
    const answer = await fetch($$("try").dataset.path.slice(1), {
      method: "POST", body: $$("body").value, headers,
    }).catch((error) => new Response(String(error), {status: 599}));
    const told = [...answer.headers].map(([name, value]) => name + ": " + value).join("\\n");
    const shown = document.createElement("pre");
    shown.textContent = answer.status + "\\n" + told;
    $$("answer").replaceChildren(shown);
    if ((answer.headers.get("Content-Type") || "").startsWith("image/")) {
      const image = document.createElement("img");
      image.src = URL.createObjectURL(await answer.blob());
      $$("answer").append(image);
    } else {
      shown.textContent += "\\n\\n";
      const text = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let part = await text.read(); !part.done; part = await text.read()) { shown.textContent += part.value; }
    }
  };
  fill();
}
</script>
""")


def render(spec: Mapping[str, Any]) -> str:
    """The page for an OpenAPI description."""
    return _PAGE.substitute(
        title=_text(spec["info"]["title"]),
        introduction="".join(f"<p>{_prose(part)}</p>" for part in spec["info"]["description"].split("\n\n")),
        operations="\n".join(
            _operation(method, path, operation, spec)
            for path, methods in spec["paths"].items()
            for method, operation in methods.items()
        ),
    )


def _operation(method: str, path: str, operation: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    parts = [f"<h2><code>{method.upper()} {_text(path)}</code></h2>", f"<p>{_prose(operation['description'])}</p>"]
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        if "examples" in content:
            parts += [_fields(content["schema"]), _try_it(path, content["examples"], operation)]
        else:
            parts += ["<h3>Request</h3>", f"<pre>{_text(json.dumps(content['example'], indent=1))}</pre>"]
    parts.append("<h3>Answers</h3>")
    parts += [_response(status, response, spec) for status, response in operation["responses"].items()]
    return "\n".join(parts)


def _fields(schema: Mapping[str, Any]) -> str:
    required = set(schema["required"])
    rows = "".join(
        f"<tr><td><code>{_text(name)}</code><td>{_text(_kind(field))}"
        f"<td>{'required' if name in required else _text(json.dumps(field.get('default')))}"
        f"<td>{_prose(field.get('description', ''))}"
        for name, field in schema["properties"].items()
    )
    return f"<h3>Request</h3><table><tr><th>Field<th>Type<th>Default<th>Meaning{rows}</table>"


def _kind(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_kind(option) for option in field["anyOf"])
    if "enum" in field:
        return " | ".join(json.dumps(value) for value in field["enum"])
    bounds = [
        f"{word} {_number(field[key])}"
        for key, word in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("multipleOf", "multiple of"),
            ("maxLength", "length ≤"),
        )
        if key in field
    ]
    return ", ".join([str(field["type"]), *bounds])


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _try_it(path: str, examples: Mapping[str, Any], operation: Mapping[str, Any]) -> str:
    options = "".join(f'<option value="{_text(name)}">{_text(e["summary"])}' for name, e in examples.items())
    forms = "".join(f"<option>{_text(form)}" for form in operation["responses"]["200"]["content"])
    asks_key = "security" in operation
    key = '<label>API key: <input type="password" id="key" autocomplete="off"></label> ' if asks_key else ""
    # In a script element only "</" could end it early; JSON may write the slash with a backslash.
    values = json.dumps({name: example["value"] for name, example in examples.items()}).replace("</", "<\\/")
    return (
        f'<h3>Try it</h3><div id="try" data-path="{_text(path)}"><p>Body: <select id="example">{options}</select> '
        f'with another photo: <input type="file" id="file" accept="image/*"></p><textarea id="body" spellcheck="false">'
        f'</textarea><p><code>Accept</code>: <select id="accept">{forms}</select> {key}'
        f'<button id="send">Send</button></p>'
        f'<div id="answer"></div></div><script type="application/json" id="examples">{values}</script>'
    )


def _response(status: str, response: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    kind = "ok" if status.startswith("2") else "bad"
    inside = "".join(_details(response, spec))
    return (
        f'<details><summary><b class="{kind}">{_text(status)}</b> {_prose(response["description"])}</summary>'
        f"{inside}</details>"
    )


def _details(response: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[str]:
    if headers := response.get("headers"):
        rows = "".join(f"<tr><td><code>{_text(n)}</code><td>{_prose(h['description'])}" for n, h in headers.items())
        yield f"<table><tr><th>Header<th>Meaning{rows}</table>"
    for media_type, content in response.get("content", {}).items():
        yield f"<p><code>{_text(media_type)}</code></p>"
        for example in content.get("examples", {}).values():
            yield f"<pre>{_example(example['value'])}</pre>"
        reference = content.get("schema", {}).get("$ref")
        if reference and "examples" not in content:
            schema = spec["components"]["schemas"][reference.rpartition("/")[2]]
            yield f"<pre>{_text(json.dumps(schema['properties'], indent=1, ensure_ascii=False))}</pre>"


def _example(value: Any) -> str:
    """JSON, or text as it is."""
    return _text(value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False))


def _text(value: str) -> str:
    return html.escape(value)


def _prose(text: str) -> str:
    """Escaped text with the little Markdown our descriptions use: code, bold, links, fenced blocks."""
    if text.startswith("```"):
        return f"<pre>{_text(text.strip('`').strip())}</pre>"
    escaped = _text(text)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    escaped = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", escaped)
    return re.sub(r"\[([^\]]+)\]\((https://[^)\s]+)\)", r'<a href="\2" rel="noreferrer">\1</a>', escaped)
