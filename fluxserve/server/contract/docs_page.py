"""The OpenAPI document as one HTML page, without scripts or foreign assets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 { margin-top: 2.5rem; } code { background: #f3f3f3; padding: .1em .3em; border-radius: 3px; }
table { border-collapse: collapse; width: 100%; } td, th { border-bottom: 1px solid #ddd; padding: .3rem .5rem;
text-align: left; vertical-align: top; } .method { color: #06c; }
"""
_MOST_CHOICES = 10


def render_docs(schema: Mapping[str, Any]) -> str:
    """The page for an OpenAPI document."""
    info = schema["info"]
    routes = "".join(
        _route(method, path, operation)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style>"
        f"<h1>{escape(info['title'])}</h1><p>{escape(info.get('summary', ''))} "
        f'The same for programs: <a href="openapi.json">openapi.json</a>.</p>{routes}</html>'
    )


def _route(method: str, path: str, operation: Mapping[str, Any]) -> str:
    body = "".join(_body(kind, content["schema"]) for kind, content in _request_content(operation).items())
    answers = ", ".join(operation["responses"])
    return (
        f"<h2><span class=method>{method.upper()}</span> <code>{escape(path)}</code></h2>"
        f"<p>{escape(operation.get('description', ''))}</p>{body}<p>Answers: {answers}.</p>"
    )


def _request_content(operation: Mapping[str, Any]) -> Mapping[str, Any]:
    content: Mapping[str, Any] = operation.get("requestBody", {}).get("content", {})
    return content


def _body(media_type: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = "".join(_row(name, rule, name in required) for name, rule in schema["properties"].items())
    return (
        f"<p>Takes <code>{escape(media_type)}</code>:</p><table>"
        f"<tr><th>field<th>type<th>default<th>meaning{rows}</table>"
    )


def _row(name: str, rule: Mapping[str, Any], required: bool) -> str:
    default = "required" if required else _default(rule.get("default"))
    kind = " or ".join(dict.fromkeys(_kinds(rule))) or "any"
    meaning = rule.get("description", "")
    return f"<tr><td><code>{escape(name)}</code><td>{escape(kind)}<td>{default}<td>{escape(meaning)}"


def _default(value: object) -> str:
    return "" if value is None or value == [] else f"<code>{escape(str(value))}</code>"


def _kinds(rule: Mapping[str, Any]) -> Iterator[str]:
    """The types a field may have, with their ranges, in words; null is said once for all in the text."""
    for choice in rule.get("anyOf", [rule]):
        types = choice.get("type", [])
        for kind in [types] if isinstance(types, str) else types:
            if kind != "null":
                yield kind + _bounds(choice)


def _bounds(rule: Mapping[str, Any]) -> str:
    if "enum" in rule:
        return ": " + ", ".join(str(choice) for choice in rule["enum"][:_MOST_CHOICES] if choice is not None)
    low = rule.get("minimum", rule.get("exclusiveMinimum"))
    return f" {low} … {rule['maximum']}" if low is not None and "maximum" in rule else ""
