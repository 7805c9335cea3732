"""The tools that agents are given: draw, edit, list_models. A client of the public API, wherever that is.

Needs the extra `mcp`. Knows neither the server nor the transport: what it asks goes through an HTTP client.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
from httpx2 import AsyncClient, HTTPError, Response
from mcp_types import CallToolResult, ContentBlock, ImageContent, ResourceLink, TextContent, Tool, ToolAnnotations

from fluxserve.server.contract.openapi import body_schema
from fluxserve.server.contract.schemas import EditParameters, GenerationParameters
from fluxserve.server.http.instrumentation import WARNING_HEADER
from fluxserve.server.http.paths import IMAGE_REQUESTS, JOBS, MODELS, PICTURES
from fluxserve.server.jobs.image_store import PICTURE_NAME

Report = Callable[[float, float | None, str | None], Awaitable[None]]
"""Tells the agent: done, of how much, in words."""

_POLL_S = 0.25
_MOST_SHOWN_BYTES = 900_000
"""Of pictures inside one result, in base64: the SDK's clients take events of 1 MiB. The rest are links alone."""
_FORMAT = "webp"
"""What is drawn unless another is asked for: PNGs of the usual sizes would be links alone."""
_COMMON = (
    "prompt",
    "model",
    "size",
    "n",
    "quality",
    "num_inference_steps",
    "guidance_scale",
    "negative_prompt",
    "true_cfg_scale",
    "seed",
    "loras",
    "output_format",
)
_PICTURE = {
    "type": "string",
    "description": "The url of a picture that was drawn here, or a PNG, JPEG or WebP file as base64 or a data: URL.",
}
_OWN_URL = re.compile(rf"(?:https?://[^\s?#]*)?{PICTURES}/({PICTURE_NAME.pattern})")


class ToolFailed(Exception):
    """What the agent is told, in the server's words."""


@dataclass(frozen=True)
class Asking:
    """One call of a tool. api: the public API, as its caller may use it."""

    api: AsyncClient
    report: Report


async def call_tool(name: str, arguments: Mapping[str, Any], asking: Asking) -> CallToolResult:
    """The result, or what is wrong as a result that is an error."""
    try:
        _check(name, arguments)
        return await _TOOLS[name][1](dict(arguments), asking)
    except ToolFailed as error:
        return CallToolResult(content=[TextContent(text=str(error))], is_error=True)
    except HTTPError as error:
        text = f"the fluxserve server does not answer ({type(error).__name__}); is `fluxserve serve` running?"
        return CallToolResult(content=[TextContent(text=text)], is_error=True)


def tools() -> list[Tool]:
    return [tool for tool, _ in _TOOLS.values()]


def _check(name: str, arguments: Mapping[str, Any]) -> None:
    """Misspelt arguments would otherwise be dropped in silence."""
    if name not in _TOOLS:
        raise ToolFailed(f"there is no tool {name[:64]!r}; there are {', '.join(_TOOLS)}")
    known = _TOOLS[name][0].input_schema["properties"]
    for each in arguments:
        if each not in known:
            raise ToolFailed(f"{name} takes no argument {each[:64]!r}; it takes {', '.join(known)}")


async def _draw(arguments: dict[str, Any], asking: Asking) -> CallToolResult:
    return await _pictures(f"{IMAGE_REQUESTS}/generations", arguments, asking)


async def _edit(arguments: dict[str, Any], asking: Asking) -> CallToolResult:
    images = arguments.pop("image", [])
    mask = arguments.pop("mask", None)
    for_image = images if isinstance(images, list) else [images]
    fields = {**arguments, "images": [await _as_reference(each, "image", asking) for each in for_image]}
    if mask:
        fields["mask"] = await _as_reference(mask, "mask", asking)
    return await _pictures(f"{IMAGE_REQUESTS}/edits", fields, asking)


async def _list_models(arguments: dict[str, Any], asking: Asking) -> CallToolResult:
    body = _checked(await asking.api.get(MODELS))
    lines = [f"{model['id']}: {model['description']}" for model in body["data"]]
    return CallToolResult(content=[TextContent(text="\n".join(lines))], structured_content={"models": body["data"]})


async def _as_reference(value: Any, name: str, asking: Asking) -> dict[str, str]:
    """A picture as the API takes it. Of URLs, those of this server's pictures are read here; no other is fetched."""
    if not isinstance(value, str) or not value:
        raise ToolFailed(f"{name} must be the url of a picture that was drawn here, base64 or a data: URL")
    if match := _OWN_URL.fullmatch(value):
        answer = await asking.api.get(f"{PICTURES}/{match[1]}")
        if answer.status_code != 200:
            raise ToolFailed(_words(answer))
        value = base64.b64encode(answer.content).decode()
    is_url = re.match(r"data:|[A-Za-z][A-Za-z0-9+.-]*://", value)
    return {"image_url": value if is_url else f"data:image/png;base64,{value}"}


async def _pictures(path: str, fields: dict[str, Any], asking: Asking) -> CallToolResult:
    """Draws as a job, so that it can be followed and cancelled."""
    sent = {"output_format": _FORMAT, **fields, "response_format": "url"}
    promised = await asking.api.post(path, json=sent, headers={"prefer": "respond-async"})
    job = await _finished(_checked(promised), asking)
    if job["status"] != "completed":
        raise ToolFailed(job["error"]["message"])
    return await _result(job["result"], promised.headers.get(WARNING_HEADER), asking)


async def _finished(job: dict[str, Any], asking: Asking) -> dict[str, Any]:
    address = f"{JOBS}/{job['id']}"
    try:
        while job["status"] in ("queued", "in_progress"):
            await asking.report(float(job.get("steps_done", 0)), job.get("steps"), _state(job))
            await anyio.sleep(_POLL_S)
            job = _checked(await asking.api.get(address))
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            await asking.api.delete(address)
        raise
    return job


def _state(job: Mapping[str, Any]) -> str:
    expected = f", about {job['eta_ms'] / 1000:.0f} s left" if "eta_ms" in job else ""
    if job["status"] == "queued":
        return f"queued: place {job['place']}{expected}"
    return f"drawing: step {job['steps_done']} of {job['steps']}{expected}"


async def _result(body: Mapping[str, Any], warnings: str | None, asking: Asking) -> CallToolResult:
    """Each picture as a link, and as itself as long as there is room."""
    content: list[ContentBlock] = []
    room = _MOST_SHOWN_BYTES
    for item in body["data"]:
        media_type = f"image/{body['output_format']}"
        name = item["url"].rpartition("/")[2]
        answer = await asking.api.get(f"{PICTURES}/{name}")
        data = base64.b64encode(answer.content).decode()
        room -= len(data)
        if answer.status_code == 200 and room >= 0:
            content.append(ImageContent(data=data, mime_type=media_type))
        content.append(ResourceLink(name=f"seed {item['seed']}", uri=item["url"], mime_type=media_type))
    told = [f"seed {item['seed']}: {item['url']}" for item in body["data"]]
    told += [f"warnings: {warnings}"] if warnings else []
    content.append(TextContent(text="\n".join(told)))
    about = {name: body[name] for name in ("model", "size", "quality", "timings")}
    return CallToolResult(content=content, structured_content={**about, "images": body["data"], "warnings": warnings})


def _checked(answer: Response) -> dict[str, Any]:
    if answer.is_error:
        raise ToolFailed(_words(answer))
    body: dict[str, Any] = answer.json()
    return body


def _words(answer: Response) -> str:
    """The server's own, with how long to wait where it says so."""
    error = answer.json()["error"]
    wait = answer.headers.get("retry-after")
    return f"{error['message']} ({error['code']})" + (f"; try again in {wait} s" if wait else "")


def _schema(parameters: type[GenerationParameters | EditParameters], extra: dict[str, Any]) -> dict[str, Any]:
    body = body_schema(parameters, {})
    properties = {name: body["properties"][name] for name in _COMMON}
    properties["output_format"] = {**properties["output_format"], "default": _FORMAT}
    required = ["prompt", *(name for name in extra if name == "image")]
    return {"type": "object", "properties": properties | extra, "required": required, "additionalProperties": False}


_EDITED = {
    "image": {"anyOf": [_PICTURE, {"type": "array", "items": _PICTURE}], "description": _PICTURE["description"]},
    "mask": {**_PICTURE, "description": "A PNG of the picture's size: what is transparent is redrawn."},
}
_DRAWS = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)

_TOOLS: dict[str, tuple[Tool, Callable[[dict[str, Any], Asking], Awaitable[CallToolResult]]]] = {
    "draw": (
        Tool(
            name="draw",
            description="Draw pictures from a prompt.",
            input_schema=_schema(GenerationParameters, {}),
            annotations=_DRAWS,
        ),
        _draw,
    ),
    "edit": (
        Tool(
            name="edit",
            description="Redraw a picture by a prompt, or only what is transparent in its mask.",
            input_schema=_schema(
                EditParameters, {**_EDITED, "strength": body_schema(EditParameters, {})["properties"]["strength"]}
            ),
            annotations=_DRAWS,
        ),
        _edit,
    ),
    "list_models": (
        Tool(
            name="list_models",
            description="The models that can draw, with their sizes, limits, defaults and LoRAs.",
            input_schema={"type": "object", "properties": {}, "additionalProperties": False},
            annotations=_READS,
        ),
        _list_models,
    ),
}
