"""/docs: the OpenAPI document as a page for people. Plain HTML, made once but for the address in its commands; no script.

It knows no route: all that it says comes from the document.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from functools import lru_cache
from html import escape
from string import Template
from typing import Any
from urllib.parse import quote

import msgspec

from scoremean.settings import Settings
from scoremean.web.openapi import EVENTS, PROBLEM, document
from scoremean.web.wire import JSON

# Stands for the address in the commands. A shell needs quotes around it, and so they are there for any other.
_ADDRESS = "http://[address]"

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <title>scoremean: HTTP routes</title>
  <link rel="icon" type="image/svg+xml" href="/page/icon.svg">
  <link rel="stylesheet" href="/page/page.css">
  <link rel="stylesheet" href="/page/docs.css">
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header><div class="bar"><img src="/page/icon.svg" alt="" width="32" height="32"><h1>HTTP routes</h1></div></header>
<main id="main" class="docs" tabindex="-1">
<p>$summary. $description</p>
<nav aria-label="On this page">
<ul>
$links
</ul>
</nav>
$routes
<section class="panel" id="types" aria-labelledby="types-title">
<h2 id="types-title">Types</h2>
$types
</section>
<section class="panel" id="problems" aria-labelledby="problems-title">
<h2 id="problems-title">Problems</h2>
$problems
</section>
</main>
<footer><p>scoremean $version</p>
<nav aria-label="More of this service"><a href="/">Page</a> <a href="/openapi.json">OpenAPI</a></nav></footer>
</body>
</html>
""")


def encoded(settings: Settings, version: str, address: str) -> bytes:
    """Return the page of a service with these settings.

    Args:
        address: of the service for who asks, in characters that need neither HTML's escapes nor a shell's within quotes.
    """
    return _encoded(settings, version).replace(_ADDRESS.encode(), address.encode())


@lru_cache(maxsize=1)
def _encoded(settings: Settings, version: str) -> bytes:
    return render(document(settings, version)).encode()


def render(whole: Mapping[str, Any]) -> str:
    """Return the page that an OpenAPI document of scoremean makes."""
    routes = [
        (f"{method.upper()} {path}", _Route(whole, method.upper(), path, operation))
        for path, item in whole["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    ]
    links = [(route.name, f"<code>{escape(title)}</code> {_text(route.summary)}") for title, route in routes]
    links += [("types", "Types"), ("problems", "Problems")]
    components = whole["components"]
    return _PAGE.substitute(
        summary=_text(whole["info"]["summary"]),
        description=_text(whole["info"]["description"]),
        version=escape(whole["info"]["version"]),
        links="\n".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in links),
        routes="\n".join(route.section(title) for title, route in routes),
        types="\n".join(_type_section(name, schema) for name, schema in components["schemas"].items()),
        problems=_table(
            "Every error, by the last part of its type: urn:scoremean:...",
            ("type", "status", "what it says"),
            (
                (f'<code id="{slug}">{slug}</code>', str(one["value"]["status"]), _text(one["description"]))
                for slug, one in components["examples"].items()
            ),
        ),
    )


class _Route:
    """One operation, to be read."""

    def __init__(self, whole: Mapping[str, Any], method: str, path: str, operation: Mapping[str, Any]):
        self._whole = whole
        self._method = method
        self._path = path
        self._operation = operation
        self._responses = operation["responses"]
        self.name = operation["operationId"]
        self.summary = operation["summary"]

    def section(self, title: str) -> str:
        """Return its part of the page."""
        parts = [
            f'<section class="panel" id="{self.name}" aria-labelledby="{self.name}-title">',
            f'<h2 id="{self.name}-title"><code>{escape(title)}</code></h2>',
            f"<p>{_text(self.summary)}. {_text(self._operation.get('description', ''))}</p>",
            f"<pre><code>{escape(self._curl())}</code></pre>",
            self._parameters(),
            self._body(),
            _table("Answers", ("status", "body", "what", "headers"), (self._answer(*one) for one in self._responses.items())),
            "</section>",
        ]
        return "\n".join(part for part in parts if part)

    def _parameters(self) -> str:
        rows = [
            (f"<code>{escape(one['name'])}</code>", one["in"], _type(one["schema"]), _text(one["description"]))
            for one in self._operation.get("parameters", ())
        ]
        return _table("Parameters", ("name", "in", "type", "what"), rows) if rows else ""

    def _body(self) -> str:
        content = self._operation.get("requestBody", {}).get("content", {})
        rows = [(f"<code>{kind}</code>", _type(one["schema"])) for kind, one in content.items()]
        return _table("Body", ("Content-Type", "type"), rows) if rows else ""

    def _answer(self, status: str, response: Mapping[str, Any]) -> tuple[str, str, str, str]:
        if "$ref" in response:
            response = self._whole["components"]["responses"][response["$ref"].rpartition("/")[2]]
        content = response.get("content", {})
        if PROBLEM in content:
            body = _type(content[PROBLEM]["schema"])
            text = " ".join(f'<a href="#{slug}"><code>{slug}</code></a>' for slug in content[PROBLEM]["examples"])
        else:
            types: dict[str, list[str]] = {}
            for kind, one in content.items():
                types.setdefault(_type(one["schema"]), []).append(f"<code>{kind}</code>")
            body = "<br>".join(f"{text} as {' or '.join(kinds)}" for text, kinds in types.items())
            text = _text(response["description"])
        headers = " ".join(f"<code>{name}</code>" for name in response["headers"] if name != "X-Request-Id")
        return status, body or "none", text, headers

    def _curl(self) -> str:
        """Return a command that asks for it, with the document's examples."""
        path, query = self._path, []
        for one in self._operation.get("parameters", ()):
            if one["in"] == "path":
                path = path.replace("{%s}" % one["name"], quote(one["example"], safe=""))
            elif one["in"] == "query" and "example" in one:
                query.append(f"{one['name']}={one['example']}")
        words = ["curl"] if self._method in ("GET", "POST") else ["curl", "-X", self._method]
        if EVENTS in self._responses["200"]["content"]:
            words.append("-N")
        if self._operation.get("security"):
            words.append('-H "Authorization: Bearer $TOKEN"')
        if self._method == "POST":
            schema = self._operation["requestBody"]["content"][JSON]["schema"]
            name = schema.get("oneOf", [schema])[0]["$ref"].rpartition("/")[2]
            [body] = self._whole["components"]["schemas"][name]["examples"]
            words += ["-H", f"'Content-Type: {JSON}'", "-d", shlex.quote(msgspec.json.encode(body).decode())]
        return " ".join([*words, shlex.quote(_ADDRESS + path + ("?" + "&".join(query) if query else ""))])


def _type_section(name: str, schema: Mapping[str, Any]) -> str:
    head = f'<h3 id="type-{name}">{name}</h3>\n<p>{_text(schema["description"])}</p>'
    if schema["type"] == "array":
        return f"{head}\n<p>{_type(schema)}</p>"
    required = schema["required"]
    rows = (
        (f"<code>{member}</code>" + ("" if member in required else " (optional)"), _type(one), _text(one["description"]))
        for member, one in schema["properties"].items()
    )
    return f"{head}\n{_table(f'Members of {name}', ('member', 'type', 'what'), rows)}"


def _type(schema: Mapping[str, Any]) -> str:
    """Return what a schema allows, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#type-{name}">{name}</a>'
    for key in ("oneOf", "anyOf"):
        if key in schema:
            return " or ".join(map(_type, schema[key]))
    if "const" in schema or "enum" in schema:
        values = schema.get("enum") or [schema["const"]]
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in values)
    if "contentSchema" in schema:
        return _type(schema["contentSchema"])
    return _TYPES.get(schema["type"], _number)(schema)


def _array(schema: Mapping[str, Any]) -> str:
    bounds, items = _bounds(schema, "minItems", "maxItems"), _type(schema["items"])
    return f"array of {bounds and bounds + ' '}{f'({items})' if ' or ' in items else items}"


def _object(schema: Mapping[str, Any]) -> str:
    if "properties" not in schema:
        return "object"
    return "object of " + ", ".join(f"{escape(name)}: {_type(one)}" for name, one in schema["properties"].items())


def _string(schema: Mapping[str, Any]) -> str:
    bounds = _bounds(schema, "minLength", "maxLength")
    return f"string of {bounds} characters" if bounds else "string"


def _number(schema: Mapping[str, Any]) -> str:
    return f"{schema['type']} {_bounds(schema, 'minimum', 'maximum')}".strip()


_TYPES = {"array": _array, "object": _object, "string": _string}


def _bounds(schema: Mapping[str, Any], low: str, high: str) -> str:
    least, most = schema.get(low), schema.get(high)
    if least is None:
        return "" if most is None else f"at most {most}"
    if most is None:
        return f"at least {least}"
    return f"{least}" if least == most else f"{least} to {most}"


def _table(caption: str, heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table; the cells are HTML, and the first of a row is its head."""
    lines = [f"<table><caption>{escape(caption)}</caption>", "<thead><tr>"]
    lines += [f'<th scope="col">{escape(head)}</th>' for head in heads]
    lines.append("</tr></thead>\n<tbody>")
    for head, *cells in rows:
        lines.append(f'<tr><th scope="row">{head}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    return "\n".join([*lines, "</tbody></table>"])


def _text(text: str) -> str:
    """Return a text of the document as HTML, with `code` as such."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
