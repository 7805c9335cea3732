"""From the fields a client sent to checked parameters: aliases, types, ranges.

Error messages are worded from the JSON schema of the field, so they say what `/openapi.json` says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fluxserve.errors import InvalidRequest
from fluxserve.server.contract.loras import gather_loras, is_lora_field
from fluxserve.server.contract.schemas import ALIASES, ImageParameters

Parameters = TypeVar("Parameters", bound=ImageParameters)

_UNSUPPORTED = frozenset({"output_format", "background"})
"""Fields whose other values are OpenAI's, and only this server's lack."""
_REASONS = {
    "transparent": "; the model draws no transparency",
    "gif": "; the model draws no animations",
    "svg": "; the model draws pixels, no vector graphics",
}
_PRIVATE = frozenset({"prompt", "negative_prompt"})
"""Fields whose words no message repeats, so that none reaches a log."""
_NUMBER = re.compile(r"[+-]?([0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})([eE][+-]?[0-9]{1,3})?", re.ASCII)
_WORDS = {"true": True, "false": False}
_NOTHING = frozenset({"", "null", "none", "undefined"})
"""How languages write into a form that there is no value."""


def parse_parameters(fields: Mapping[str, Any], schema: type[Parameters]) -> Parameters:
    """The checked parameters of one request. `model_fields_set` of the result tells which fields were sent.

    Raises:
        InvalidRequest: names the field as the client spelled it.
    """
    canonical, spelling = _canonical(_given(fields, schema))
    try:
        return schema.model_validate(canonical)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False)[0], schema, spelling) from None


def parse_text_fields(fields: Mapping[str, Any], schema: type[ImageParameters]) -> dict[str, Any]:
    """Form fields as the JSON values they stand for; other text stays text, to be refused by type."""
    return {name: _from_text(value, _kind(name, schema)) for name, value in fields.items()}


def _given(fields: Mapping[str, Any], schema: type[ImageParameters]) -> dict[str, Any]:
    """What is really given, with what a literal `extra_body` object holds; the top level wins.

    Nulls and empty texts are not, nor is a seed of -1: one that is drawn. Languages write 1.0 or 4e0 for integers.
    """
    extra = fields.get("extra_body")
    if extra is not None and not isinstance(extra, dict):
        raise InvalidRequest("extra_body must be an object", param="extra_body", code="invalid_type")
    merged = {**(extra or {}), **{name: value for name, value in fields.items() if name != "extra_body"}}
    meant = {name: _as_integer(value, _kind(name, schema)) for name, value in merged.items()}
    return {name: value for name, value in meant.items() if name == "prompt" or not _is_unsaid(name, value)}


def _is_unsaid(name: str, value: object) -> bool:
    return value is None or value == "" or (name == "seed" and value == -1)


def _as_integer(value: object, kind: str | None) -> object:
    return int(value) if kind == "integer" and isinstance(value, float) and value.is_integer() else value


def _canonical(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """(fields under their own names, the client's spelling of each renamed one)."""
    spelling = {}
    for alias, name in ALIASES.items():
        if alias in fields:
            _put(fields, name, fields.pop(alias), alias)
            spelling[name] = alias
    for name in ("loras", "lora"):
        spelled = [each for each in fields if is_lora_field(each) and each.partition("[")[0] == name]
        if spelled:
            _put(fields, "loras", gather_loras([(each, fields.pop(each)) for each in spelled]), name)
            spelling["loras"] = name
    if "width" in fields or "height" in fields:
        size = _size_of(fields.pop("width", None), fields.pop("height", None))
        if fields.get("size") == "auto":
            del fields["size"]
        _put(fields, "size", size, "width and height")
    if isinstance(fields.get("output_format"), str):
        fields["output_format"] = fields["output_format"].lower().replace("jpg", "jpeg")
    return fields, spelling


def _put(fields: dict[str, Any], name: str, value: Any, alias: str) -> None:
    if name in fields and fields[name] != value:
        message = f"{name} and {alias} disagree; send one of them"
        raise InvalidRequest(message, param=name, code="conflicting_parameters")
    fields[name] = value


def _size_of(width: object, height: object) -> str:
    for name, side in (("width", width), ("height", height)):
        if side is None:
            raise InvalidRequest(
                f"{name} is missing; send width and height, or size", param=name, code="missing_required_parameter"
            )
        if type(side) is not int:
            raise InvalidRequest(f"{name} must be an integer, got {_show(side)}", param=name, code="invalid_type")
    return f"{width}x{height}"


def _refusal(error: ErrorDetails, schema: type[ImageParameters], spelling: Mapping[str, str]) -> InvalidRequest:
    name = str(error["loc"][0])
    param = spelling.get(name, name)
    code = _code(error["type"], name)
    if code == "missing_required_parameter":
        return InvalidRequest(f"{param} is required", param=param, code=code)
    if error["type"] == "blank":
        return InvalidRequest(f"{param} {error['msg']}", param=param, code=code)
    got = _show(error["input"]) if name not in _PRIVATE else _show_kind(error["input"])
    reason = _REASONS.get(error["input"], "") if name in _UNSUPPORTED and isinstance(error["input"], str) else ""
    wanted = _describe(_properties(schema)[name])
    return InvalidRequest(f"{param} must be {wanted}, got {got}{reason}", param=param, code=code)


def _code(kind: str, name: str) -> str:
    match kind:
        case "missing" if name != "loras":
            return "missing_required_parameter"
        case "string_too_long":
            return "string_above_max_length"
        case "literal_error" if name in _UNSUPPORTED:
            return "unsupported_value"
        case _ if kind.endswith("_type"):
            return "invalid_type"
        case _:
            return "invalid_value"


@cache
def _properties(schema: type[ImageParameters]) -> dict[str, dict[str, Any]]:
    properties: dict[str, dict[str, Any]] = schema.model_json_schema()["properties"]
    return {name: {**rule, **rule.get("anyOf", [{}])[0]} for name, rule in properties.items()}


def _describe(rule: Mapping[str, Any]) -> str:
    """The words for a JSON schema: `an integer from 1 to 10`."""
    if "enum" in rule:
        return "one of " + ", ".join(rule["enum"])
    match rule["type"]:
        case "boolean":
            return "true or false"
        case "string" if "maxLength" in rule:
            return f"text of {rule.get('minLength', 0)} to {rule['maxLength']} characters"
        case "string":
            return "text"
        case "array":
            return f"a list of at most {rule['maxItems']} items ({rule['description'].rstrip('.')})"
        case kind:
            return f"{'an' if kind == 'integer' else 'a'} {kind}{_range(rule)}"


def _range(rule: Mapping[str, Any]) -> str:
    low = f"above {rule['exclusiveMinimum']:g}" if "exclusiveMinimum" in rule else f"from {rule['minimum']}"
    return f" {low} to {rule['maximum']}" if "maximum" in rule else f" of at least {rule['minimum']}"


def _show(value: object) -> str:
    """The start of a value as JSON."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


def _show_kind(value: object) -> str:
    return f"{len(value)} characters" if isinstance(value, str) else type(value).__name__


def _kind(name: str, schema: type[ImageParameters]) -> str | None:
    rule = _properties(schema).get({**ALIASES, "lora": "loras"}.get(name, name), {})
    return "integer" if name in ("width", "height") else rule.get("type")


def _from_text(value: Any, kind: str | None) -> Any:
    if not isinstance(value, str):
        return value
    text = value.strip()
    if kind in ("integer", "number", "boolean") and text.lower() in _NOTHING:
        return None
    if kind == "array":
        return [_from_text(each, "number") for each in text.strip("[]").split(",")]
    if kind == "boolean":
        return _WORDS.get(text.lower(), value)
    if kind not in ("integer", "number") or not _NUMBER.fullmatch(text):
        return value
    exact = Decimal(text)
    return int(exact) if kind == "integer" and exact == exact.to_integral_value() else float(text)
