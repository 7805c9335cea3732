"""POST /hf: Hugging Face's inference contract for text-to-image and image-to-image.

Follows huggingface_hub 2.4 `inference/_providers/hf_inference.py`: `{"inputs", "parameters"}`, or a picture's bytes
where there are no parameters; the answer is a picture's bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from fluxserve.errors import InvalidRequest
from fluxserve.server.contract.delivery import accepted_pictures
from fluxserve.server.contract.edit_body import EditBody
from fluxserve.server.contract.parameters import parse_parameters
from fluxserve.server.contract.pictures import choose_pictures
from fluxserve.server.contract.schemas import EditParameters, GenerationParameters, VariationParameters
from fluxserve.server.doors.fields import ignored, rounded_size
from fluxserve.server.http.context import context_of
from fluxserve.server.http.paths import HF
from fluxserve.server.http.spool import Spool
from fluxserve.server.routes.images import Asked, read_once_known, serve, shrink
from fluxserve.server.services import Services, ServicesOf

router = APIRouter(include_in_schema=False)

_PICTURE = re.compile(r"data:|iVBORw0KGgo|/9j/|UklGR")
"""How a picture begins in base64: PNG, JPEG, WebP."""
_IGNORED = ("scheduler", "num_images_per_prompt", "guidance_rescale")


@router.post(HF)
async def infer(request: Request, services: ServicesOf) -> Response:
    """A picture from a prompt, or from a picture."""
    return await serve(request, services, await _asked(request, services))


async def _asked(request: Request, services: Services) -> Asked:
    """What was sent is let go of before the job begins."""
    async with services.bodies.inference(request) as body:
        return await read_once_known(request, lambda: _read(request, services, body))


async def _read(request: Request, services: Services, spool: Spool) -> Asked:
    async with services.uploads.turn(context_of(request.scope).client, spool.size) as decoder:
        fields: dict[str, Any] = {}
        inputs: str | bytes
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
            document, digest = await services.parser.document(spool, decoder)
            inputs, fields = _inputs(document), _fields(document, request, services)
        else:
            inputs, digest = await services.parser.run(lambda: _file(spool), spool.size)
        if not accepted_pictures(request.headers.get("accept", "")):
            fields["response_format"] = "file"
        if not _is_picture(inputs):
            parameters = parse_parameters({**fields, "prompt": inputs}, GenerationParameters)
            return Asked(services.model(parameters.model), parameters, None, digest)
        schema = EditParameters if fields.get("prompt") else VariationParameters
        if schema is VariationParameters:
            fields.pop("prompt", None)
        pictures = choose_pictures([("image", _picture(inputs))], with_mask=False)
        return await shrink(services, EditBody(parse_parameters(fields, schema), pictures, digest), decoder)


def _file(spool: Spool) -> tuple[bytes, str]:
    """(the picture, its digest)."""
    file = spool.read()
    return file, hashlib.sha256(file).hexdigest()


def _inputs(document: Mapping[str, Any]) -> str:
    inputs = document.get("inputs")
    if not isinstance(inputs, str) or not inputs:
        raise InvalidRequest(
            "inputs must be a prompt, or a picture in base64", param="inputs", code="missing_required_parameter"
        )
    return inputs


def _is_picture(inputs: str | bytes) -> bool:
    return isinstance(inputs, bytes) or _PICTURE.match(inputs) is not None


def _picture(inputs: str | bytes) -> bytes:
    if isinstance(inputs, bytes):
        return inputs
    return (inputs if inputs.startswith("data:") else f"data:image/png;base64,{inputs}").encode()


def _fields(document: Mapping[str, Any], request: Request, services: Services) -> dict[str, Any]:
    """The parameters in our words: their sizes are rounded, what cannot act is warned of."""
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidRequest("parameters must be an object", param="parameters", code="invalid_type")
    fields = {name: value for name, value in parameters.items() if name not in _IGNORED and value is not None}
    target = fields.pop("target_size", None)
    if not isinstance(target, dict | None):
        raise InvalidRequest("target_size must be an object", param="target_size", code="invalid_type")
    wanted = target if isinstance(target, dict) else fields
    sides = wanted.get("width"), wanted.get("height")
    fields.pop("width", None), fields.pop("height", None)
    size, warnings = rounded_size(*sides, services.config.max_pixels)
    context_of(request.scope).warnings.extend([*warnings, *ignored(name for name in _IGNORED if name in parameters)])
    return {**fields, **size}
