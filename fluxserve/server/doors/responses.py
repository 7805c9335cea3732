"""POST /v1/responses, for its tool image_generation alone: the Responses API as clients of agents draw with it.

Follows openai-python 3.57 `types/responses/`: `tool_param.py` (ImageGeneration), `response_output_item.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from fluxserve.errors import InvalidRequest
from fluxserve.server.answers.form import Form
from fluxserve.server.contract.edit_body import EditBody
from fluxserve.server.contract.parameters import parse_parameters
from fluxserve.server.contract.pictures import choose_pictures, take_references
from fluxserve.server.contract.schemas import EditParameters, GenerationParameters
from fluxserve.server.doors.fields import ignored
from fluxserve.server.doors.responses_answer import ResponseWords, whole_answer
from fluxserve.server.http.context import context_of
from fluxserve.server.http.paths import RESPONSES
from fluxserve.server.http.spool import Spool
from fluxserve.server.routes.images import Asked, read_once_known, serve, shrink
from fluxserve.server.services import Services, ServicesOf

router = APIRouter(include_in_schema=False)

_OF_TOOL = (
    *("size", "quality", "output_format", "output_compression", "background", "moderation", "input_fidelity", "n"),
    "partial_images",
)
_FORM = Form(whole_answer, ResponseWords)
_UNHEARD = (
    *("instructions", "temperature", "top_p", "max_output_tokens", "reasoning", "text", "truncation"),
    "stream_options",
)
_ONLY = "fluxserve only draws: send input, and tools with one {'type': 'image_generation'}"


@router.post(RESPONSES)
async def respond(request: Request, services: ServicesOf) -> Response:
    """Draws what the input says."""
    return await serve(request, services, await _asked(request, services), _FORM)


async def _asked(request: Request, services: Services) -> Asked:
    """What was sent is let go of before the job begins."""
    async with services.bodies.document(request) as body:
        return await read_once_known(request, lambda: _read(request, services, body))


async def _read(request: Request, services: Services, spool: Spool) -> Asked:
    async with services.uploads.turn(context_of(request.scope).client, spool.size) as decoder:
        document, digest = await services.parser.document(spool, decoder)
        tool = _tool(document)
        texts: list[str] = []
        images: list[Any] = []
        for kind, value in _parts(document.get("input")):
            (images if kind == "input_image" else texts).append(value)
        context_of(request.scope).warnings.extend(ignored(name for name in _UNHEARD if document.get(name) is not None))
        fields = {name: tool[name] for name in _OF_TOOL if tool.get(name) is not None}
        fields |= {"model": tool.get("model") or document.get("model"), "prompt": "\n".join(texts)}
        fields["response_format"] = "b64_json"
        if document.get("stream") is not None:
            fields["stream"] = document["stream"]
        if not images:
            parameters = parse_parameters(fields, GenerationParameters)
            return Asked(services.model(parameters.model), parameters, None, digest)
        sent = {"images": images, "mask": tool.get("input_image_mask")}
        pictures = choose_pictures(take_references(sent), with_mask=True)
        return await shrink(services, EditBody(parse_parameters(fields, EditParameters), pictures, digest), decoder)


def _tool(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one tool there is.

    Raises:
        InvalidRequest: others, none, or what would take more than one answer.
    """
    for name in ("background", "previous_response_id", "conversation"):
        if document.get(name):
            raise InvalidRequest(f"{name} is not taken here; {_ONLY}", param=name, code="unsupported_value")
    match document.get("tools"):
        case [{"type": "image_generation"} as tool]:
            return dict(tool)
    raise InvalidRequest(_ONLY, param="tools", code="unsupported_value")


def _parts(sent: Any) -> Iterator[tuple[str, Any]]:
    """(kind, value) of the texts and pictures of the last message: what is drawn is what was said last."""
    message = sent[-1] if isinstance(sent, list) and sent else sent
    content = message.get("content") if isinstance(message, dict) else message
    for part in content if isinstance(content, list) else [{"type": "input_text", "text": content}]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "input_image":
            yield kind, {"image_url": part.get("image_url")}
        elif kind == "input_text" and isinstance(part.get("text"), str):
            yield kind, part["text"]
        else:
            raise InvalidRequest(
                "input must be text, or messages of input_text and input_image", param="input", code="invalid_type"
            )
