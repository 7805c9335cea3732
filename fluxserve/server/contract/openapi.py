"""What `/openapi.json` says beyond what the framework can tell: bodies read by hand, answers in many forms, errors."""

from __future__ import annotations

import copy
from typing import Any

from fastapi import FastAPI

from fluxserve.server.contract.schemas import (
    ALIASES,
    EditParameters,
    ErrorBody,
    GenerationParameters,
    ImageParameters,
    ImagesBody,
    JobBody,
    VariationParameters,
)
from fluxserve.server.http.instrumentation import WARNING_HEADER
from fluxserve.server.http.paths import IMAGE_REQUESTS

Responses = dict[int | str, dict[str, Any]]

_BODIES: dict[str, tuple[type[ImageParameters], tuple[str, ...]]] = {
    f"{IMAGE_REQUESTS}/generations": (GenerationParameters, ()),
    f"{IMAGE_REQUESTS}/edits": (EditParameters, ("image", "mask")),
    f"{IMAGE_REQUESTS}/variations": (VariationParameters, ("image",)),
}
"""Each image route's parameters and its pictures: files in a form, URLs in JSON."""

_BINARY = {"type": "string", "format": "binary"}
_FILE = {**_BINARY, "description": "A PNG, JPEG or WebP file, or a data: URL of one."}
_DATA_URL = {"type": "string", "description": "A data: URL of a PNG, JPEG or WebP file; also as {image_url: URL}."}
_SEVERAL = " Again for each further one, also as image[] (images, a list, in JSON), for models that draw by several."
_PICTURES: dict[str, Any] = {f"image/{name}": {"schema": _BINARY} for name in ("png", "jpeg", "webp")}
_EVENTS = "Server-sent events: KIND.partial_image, KIND.completed and error; KIND is image_generation or image_edit."
_HEADERS = {
    "x-request-id": {"schema": {"type": "string"}, "description": "The client's own, if it is harmless."},
    "openai-processing-ms": {"schema": {"type": "string"}, "description": "Milliseconds of wall time."},
    WARNING_HEADER: {"schema": {"type": "string"}, "description": "What was ignored, unknown or cut."},
}


def errors(*statuses: int) -> Responses:
    """These statuses with OpenAI's error body, and those that any guarded route may answer."""
    return {status: {"model": ErrorBody} for status in sorted({401, 403, *statuses})}


EVENTS: dict[str, Any] = {
    "description": "Server-sent events.",
    "content": {"text/event-stream": {"schema": {"type": "string", "description": _EVENTS}}},
}
IMAGE_ANSWERS: Responses = {
    200: {
        "description": "The images, in the form that was asked for.",
        "model": ImagesBody,
        "headers": _HEADERS,
        "content": {
            **_PICTURES,
            "application/zip": {"schema": _BINARY},
            "text/event-stream": {"schema": {"type": "string", "description": _EVENTS}},
        },
    },
    202: {"description": "With `Prefer: respond-async`: the job, whose address is in Location.", "model": JobBody},
    **errors(400, 404, 413, 415, 422, 429, 500, 503, 504),
}
FILE_ANSWERS: Responses = {
    200: {"description": "The picture.", "content": _PICTURES},
    206: {"description": "A range of the picture.", "content": _PICTURES},
    **{status: {"model": ErrorBody} for status in (403, 404, 410, 416)},
}


def build_schema(app: FastAPI) -> dict[str, Any]:
    """The whole document; built once, then kept by the application."""
    if app.openapi_schema is None:
        schema = app.openapi()
        for operations in schema["paths"].values():
            for operation in operations.values():
                _drop_framework_error(operation)
        for path, (parameters, files) in _BODIES.items():
            content = {"application/json": {"schema": body_schema(parameters, _pictures(files, _DATA_URL))}}
            if files:
                form = body_schema(parameters, _pictures(files, _FILE))
                content = {"multipart/form-data": {"schema": form}, **content}
            schema["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}, {}]
    return app.openapi_schema or {}


def _drop_framework_error(operation: dict[str, Any]) -> None:
    """The framework announces a 422 of its own wherever a route has a parameter; it is never sent."""
    if "HTTPValidationError" in str(operation["responses"].get("422")):
        del operation["responses"]["422"]


def _pictures(names: tuple[str, ...], rule: dict[str, str]) -> dict[str, dict[str, str]]:
    """The fields of an edit's or a variation's pictures; an edit may have several images."""
    fields = dict.fromkeys(names, rule)
    if "mask" in names:
        fields["image"] = {**rule, "description": rule["description"] + _SEVERAL}
    return fields


def body_schema(parameters: type[ImageParameters], files: dict[str, dict[str, str]]) -> dict[str, Any]:
    """The parameters' schema with the aliases and files, self-contained, each optional field nullable."""
    body = parameters.model_json_schema()
    properties: dict[str, Any] = body["properties"]
    properties["loras"]["items"]["anyOf"][1] = body.pop("$defs")["Lora"]
    for alias, name in ALIASES.items():
        properties[alias] = {**properties[name], "description": f"The same as {name}."}
    for side in ("width", "height"):
        properties[side] = {"type": "integer", "description": "Width and height together are the same as size."}
    one_lora = copy.deepcopy(properties["loras"]["items"]["anyOf"])
    properties["lora"] = {"anyOf": [*one_lora, {"type": "null"}], "description": "One LoRA."}
    for name in properties.keys() - set(body.get("required", ())):
        properties[name] = _nullable(properties[name])
    properties |= files
    if files:
        body["required"] = [*body.get("required", ()), "image"]
    return body


def _nullable(rule: dict[str, Any]) -> dict[str, Any]:
    if "type" not in rule:
        return rule
    choices = {"enum": [*rule["enum"], None]} if "enum" in rule else {}
    return {**rule, **choices, "type": [rule["type"], "null"]}
