"""How `/openapi.json` describes the image routes, whose bodies are read by hand. Knows nothing of handling requests."""

from __future__ import annotations

import copy
from typing import Any

from fluxserve.server.errors import ERROR_RULES
from fluxserve.server.headers import WARNING_HEADER
from fluxserve.server.schemas import ErrorBody, ImageParameters, ImagesBody
from fluxserve.server.streaming import EventKind

_BINARY = {"type": "string", "format": "binary"}
_ALIASES = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
_HEADERS = {
    "x-request-id": {"schema": {"type": "string"}, "description": "The client's own, if it is harmless."},
    "openai-processing-ms": {"schema": {"type": "string"}, "description": "Milliseconds of wall time."},
    WARNING_HEADER: {"schema": {"type": "string"}, "description": "What was ignored, unknown or cut."},
}

ERROR_STATUSES = sorted({rule.status for rule in ERROR_RULES.values()} - {416})
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in ERROR_STATUSES}
"""What any route may answer besides."""


def image_route(schema: type[ImageParameters], kind: EventKind, files: tuple[str, ...] = ()) -> dict[str, Any]:
    """Keyword arguments of a POST route. files: the fields that are uploads; none: the body is JSON."""
    body = _body_schema(schema, files)
    media_type = "multipart/form-data" if files else "application/json"
    success = {"content": _answers(kind), "headers": _HEADERS, "model": ImagesBody, "description": "The images."}
    return {
        "responses": {200: success, **ERRORS},
        "openapi_extra": {"requestBody": {"required": True, "content": {media_type: {"schema": body}}}},
    }


def _body_schema(schema: type[ImageParameters], files: tuple[str, ...]) -> dict[str, Any]:
    """The parameters' schema with the aliases, self-contained, each optional field nullable."""
    body = schema.model_json_schema()
    lora = body.pop("$defs")["Lora"]
    properties: dict[str, Any] = body["properties"]
    properties["loras"]["items"]["anyOf"][1] = lora
    for alias, name in _ALIASES.items():
        properties[alias] = {**properties[name], "description": f"The same as {name}."}
    for side in ("width", "height"):
        properties[side] = {"type": "integer", "description": "With its fellow, the same as size."}
    properties["lora"] = {"anyOf": copy.deepcopy(properties["loras"]["items"]["anyOf"]), "description": "One LoRA."}
    for name in properties.keys() - set(body.get("required", ())):
        properties[name] = _nullable(properties[name])
    for name in files:
        properties[name] = {**_BINARY, "description": f"The {name}: a PNG, JPEG or WebP file."}
    if files:
        body["required"] = [*body.get("required", ()), "image"]
    return body


def _nullable(rule: dict[str, Any]) -> dict[str, Any]:
    if "type" in rule and "enum" not in rule:
        return {**rule, "type": [rule["type"], "null"]}
    if "enum" in rule:
        return {**rule, "type": ["string", "null"], "enum": [*rule["enum"], None]}
    return rule


def _answers(kind: EventKind) -> dict[str, Any]:
    formats = ("png", "jpeg", "webp")
    pictures: dict[str, Any] = {f"image/{name}": {"schema": _BINARY} for name in formats}
    events = f"Server-sent events {kind}.partial_image, {kind}.completed and error."
    return {
        **pictures,
        "application/zip": {"schema": _BINARY},
        "text/event-stream": {"schema": {"type": "string", "description": events}},
    }
