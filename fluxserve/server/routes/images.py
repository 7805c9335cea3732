"""POST /v1/images/generations, /edits and /variations: from a body to a resolved request."""

from __future__ import annotations

import asyncio
import hashlib

from fastapi import APIRouter, Request
from starlette.responses import Response

from fluxserve.completion import check_count
from fluxserve.engine import Engine
from fluxserve.errors import DeadlineExceeded
from fluxserve.input_images import EditInputs, check_mask_mode
from fluxserve.request import MaskMode
from fluxserve.server.contract.edit_body import EditBody, parse_edit_body, parse_json_body
from fluxserve.server.contract.openapi import IMAGE_ANSWERS
from fluxserve.server.contract.parameters import parse_parameters
from fluxserve.server.contract.resolve import redux_of, resolve_request
from fluxserve.server.contract.schemas import EditParameters, GenerationParameters, ImageParameters, VariationParameters
from fluxserve.server.contract.uploads import read_pictures, upload_box
from fluxserve.server.http.client_timeout import read_client_timeout
from fluxserve.server.http.context import context_of
from fluxserve.server.http.disconnect import while_connected
from fluxserve.server.http.paths import IMAGE_REQUESTS
from fluxserve.server.http.spool import Spool
from fluxserve.server.serve_images import ImageCall, serve_images
from fluxserve.server.services import Services, ServicesOf

router = APIRouter(prefix=IMAGE_REQUESTS, tags=["images"])


@router.post("/generations", responses=IMAGE_ANSWERS)
async def create_images(request: Request, services: ServicesOf) -> Response:
    """Draws images from a prompt."""
    body = await services.bodies.json(request)
    fields = await services.parser.run(lambda: parse_json_body(body), len(body))
    parameters = parse_parameters(fields, GenerationParameters)
    model = services.model(parameters.model)
    if model.card is None:
        await while_connected(request.receive, _load(request, model))
    return await _serve(request, services, model, parameters, None, hashlib.sha256(body).hexdigest())


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
    """What was uploaded is let go of before the job begins."""
    async with services.bodies.form(request) as body:
        reading = _read_edit(request, services, schema, body)
        model, parameters, inputs, digest = await while_connected(request.receive, reading)
    return await _serve(request, services, model, parameters, inputs, digest)


async def _read_edit(
    request: Request, services: Services, schema: type[EditParameters] | type[VariationParameters], body: Spool
) -> tuple[Engine, ImageParameters, EditInputs, str]:
    """(model, parameters, small pictures, the digest of all). Only uploads whose turn it is are in memory."""
    content_type = request.headers["content-type"]
    async with services.uploads.turn(context_of(request.scope).client, body.size) as decoder:
        sent: EditBody = await services.parser.run(lambda: parse_edit_body(body, content_type, schema), body.size)
        model = services.model(sent.parameters.model)
        if model.card is not None:
            limits = services.serving_limits(model)
            redux = model.card.redux is not None and _weighs(sent.parameters)
            box = upload_box(sent.parameters.size, limits, redux)
            mode: MaskMode = sent.parameters.mask_mode if isinstance(sent.parameters, EditParameters) else "alpha"
            check_mask_mode(mode, sent.pictures.mask is not None)
            most = box.references.most if box.references and schema is EditParameters else 1
            check_count(len(sent.pictures.images), most)
            inputs = await read_pictures(decoder, sent.pictures, box, mode)
            # A variation's own transparency keeps nothing.
            kept = inputs if schema is EditParameters else EditInputs(inputs.image)
            return model, sent.parameters, kept, sent.digest
    await _load(request, model)
    return await _read_edit(request, services, schema, body)


async def _load(request: Request, model: Engine) -> None:
    """Waits for the card of a model that never was loaded: its limits are not known before."""
    limit_s = read_client_timeout(request.headers).limit_s
    try:
        async with asyncio.timeout(limit_s):
            await model.wait_card()
    except TimeoutError:
        raise DeadlineExceeded(f"the model was not loaded within {limit_s:g} s") from None


def _weighs(parameters: ImageParameters) -> bool:
    """Whether an image encoder, where there is one, reads the pictures."""
    return isinstance(parameters, VariationParameters) or redux_of(parameters) is not None


async def _serve(
    request: Request,
    services: Services,
    model: Engine,
    parameters: ImageParameters,
    inputs: EditInputs | None,
    digest: str,
) -> Response:
    resolved = resolve_request(parameters, inputs, request.headers.get("accept", ""), services.serving_limits(model))
    return await serve_images(ImageCall(services, request, model, resolved, digest))
