"""POST /v1/images/generations, /edits and /variations: from a body to a resolved request."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import Response

from fluxserve.completion import check_count
from fluxserve.decoding.decoder import Decoder
from fluxserve.input_images import EditInputs, check_mask_mode
from fluxserve.request import MaskMode
from fluxserve.server.answers.images import image_answer
from fluxserve.server.contract.edit_body import EditBody, parse_edit_body, parse_json_body
from fluxserve.server.contract.openapi import IMAGE_ANSWERS
from fluxserve.server.contract.parameters import parse_parameters
from fluxserve.server.contract.resolve import resolve_request
from fluxserve.server.contract.schemas import EditParameters, GenerationParameters, ImageParameters, VariationParameters
from fluxserve.server.contract.uploads import read_pictures, upload_box
from fluxserve.server.http.context import context_of
from fluxserve.server.http.disconnect import while_connected
from fluxserve.server.http.paths import IMAGE_REQUESTS
from fluxserve.server.http.spool import Spool
from fluxserve.server.serve_images import ImageCall, Render
from fluxserve.server.serve_jobs import serve_now_or_later
from fluxserve.server.services import Services, ServicesOf

router = APIRouter(prefix=IMAGE_REQUESTS, tags=["images"])

EditSchema = type[EditParameters] | type[VariationParameters]


class Asked(NamedTuple):
    """What a request asks for, by whatever door: checked parameters, small pictures, the digest of all that came."""

    parameters: ImageParameters
    inputs: EditInputs | None
    digest: str


@router.post("/generations", responses=IMAGE_ANSWERS)
async def create_images(request: Request, services: ServicesOf) -> Response:
    """Draws images from a prompt."""
    body = await services.bodies.json(request)
    fields = await services.parser.run(lambda: parse_json_body(body), len(body))
    parameters = parse_parameters(fields, GenerationParameters)
    return await serve(request, services, Asked(parameters, None, hashlib.sha256(body).hexdigest()))


@router.post("/edits", responses=IMAGE_ANSWERS)
async def edit_image(request: Request, services: ServicesOf) -> Response:
    """Redraws a picture, or the transparent part of its mask."""
    return await _serve_edit(request, services, EditParameters)


@router.post("/variations", responses=IMAGE_ANSWERS)
async def vary_image(request: Request, services: ServicesOf) -> Response:
    """Draws other pictures like the one sent."""
    return await _serve_edit(request, services, VariationParameters)


async def _serve_edit(request: Request, services: Services, schema: EditSchema) -> Response:
    """What was uploaded is let go of before the job begins."""
    async with services.bodies.form(request) as body:
        asked = await while_connected(request.receive, _read_edit(request, services, schema, body))
    return await serve(request, services, asked)


async def _read_edit(request: Request, services: Services, schema: EditSchema, body: Spool) -> Asked:
    """Only uploads whose turn it is are in memory."""
    content_type = request.headers["content-type"]
    async with services.uploads.turn(context_of(request.scope).client, body.size) as decoder:
        sent: EditBody = await services.parser.run(lambda: parse_edit_body(body, content_type, schema), body.size)
        return await shrink(services, sent, decoder)


async def shrink(services: Services, sent: EditBody, decoder: Decoder) -> Asked:
    """An edit or a variation with its pictures made small. Raises as `read_pictures` does."""
    edits = isinstance(sent.parameters, EditParameters)
    box = upload_box(sent.parameters.size, services.serving_limits)
    mode: MaskMode = sent.parameters.mask_mode if isinstance(sent.parameters, EditParameters) else "alpha"
    check_mask_mode(mode, sent.pictures.mask is not None)
    check_count(len(sent.pictures.images), services.card.max_input_images if edits else 1)
    inputs = await read_pictures(decoder, sent.pictures, box, mode)
    # A variation's own transparency keeps nothing.
    return Asked(sent.parameters, inputs if edits else EditInputs(inputs.image), sent.digest)


async def serve(request: Request, services: Services, asked: Asked, render: Render = image_answer) -> Response:
    """The answer, as its door writes it. Raises as `serve_images` does."""
    accept, limits = request.headers.get("accept", ""), services.serving_limits
    resolved = resolve_request(asked.parameters, asked.inputs, accept, limits)
    return await serve_now_or_later(ImageCall(services, request, resolved, asked.digest, render))
