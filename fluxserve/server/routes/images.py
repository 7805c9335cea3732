"""POST /v1/images/generations, /edits and /variations: from a body to a resolved request."""

from __future__ import annotations

import asyncio
import hashlib

from fastapi import APIRouter, Request
from starlette.responses import Response

from fluxserve.input_images import EditInputs, pair_inputs
from fluxserve.server.contract.edit_body import parse_edit_body, parse_json_body
from fluxserve.server.contract.openapi import IMAGE_ANSWERS
from fluxserve.server.contract.parameters import parse_parameters
from fluxserve.server.contract.pictures import Pictures
from fluxserve.server.contract.resolve import resolve_request
from fluxserve.server.contract.schemas import EditParameters, GenerationParameters, ImageParameters, VariationParameters
from fluxserve.server.http.paths import IMAGE_REQUESTS
from fluxserve.server.serve_images import ImageCall, serve_images
from fluxserve.server.services import Services, ServicesOf

router = APIRouter(prefix=IMAGE_REQUESTS, tags=["images"])


@router.post("/generations", responses=IMAGE_ANSWERS)
async def create_images(request: Request, services: ServicesOf) -> Response:
    """Draws images from a prompt."""
    body = await services.bodies.json(request)
    parameters = parse_parameters(parse_json_body(body), GenerationParameters)
    return await _serve(request, services, parameters, None, hashlib.sha256(body).hexdigest())


@router.post("/edits", responses=IMAGE_ANSWERS)
async def edit_image(request: Request, services: ServicesOf) -> Response:
    """Redraws a picture, or the transparent part of its mask."""
    return await _serve_edit(request, services, EditParameters)


@router.post("/variations", responses=IMAGE_ANSWERS)
async def vary_image(request: Request, services: ServicesOf) -> Response:
    """Draws other pictures like the one sent."""
    return await _serve_edit(request, services, VariationParameters)


async def _serve_edit(
    request: Request, services: Services, schema: type[EditParameters] | type[VariationParameters]
) -> Response:
    body = await services.bodies.form(request)
    sent = await asyncio.to_thread(parse_edit_body, body, request.headers["content-type"], schema)
    inputs = await _read_pictures(sent.pictures, services, own_mask=schema is EditParameters)
    return await _serve(request, services, sent.parameters, inputs, sent.digest)


async def _read_pictures(pictures: Pictures, services: Services, own_mask: bool) -> EditInputs:
    """own_mask: a picture that is transparent somewhere is its own mask."""
    image = await services.uploads.read(pictures.image, "image")
    if not own_mask:
        return EditInputs(image)
    return pair_inputs(image, await services.uploads.read(pictures.mask, "mask") if pictures.mask else None)


async def _serve(
    request: Request,
    services: Services,
    parameters: ImageParameters,
    inputs: EditInputs | None,
    digest: str,
) -> Response:
    resolved = resolve_request(parameters, inputs, request.headers.get("accept", ""), services.serving_limits)
    return await serve_images(ImageCall(services, request, resolved, digest))
