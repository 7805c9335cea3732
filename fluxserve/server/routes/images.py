"""POST /v1/images/generations, /edits and /variations: from a body to a resolved request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from fluxserve.completion import check_count
from fluxserve.decoding.decoder import Decoder
from fluxserve.engine import Engine
from fluxserve.errors import DeadlineExceeded
from fluxserve.input_images import EditInputs, check_mask_mode
from fluxserve.request import MaskMode
from fluxserve.server.answers.form import OF_IMAGES, Form
from fluxserve.server.contract.body_parser import parse_json_body
from fluxserve.server.contract.edit_body import EditBody, EditSchema, edit_of_document, edit_of_form
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
from fluxserve.server.serve_images import ImageCall
from fluxserve.server.serve_jobs import serve_now_or_later
from fluxserve.server.services import Services, ServicesOf

router = APIRouter(prefix=IMAGE_REQUESTS, tags=["images"])

T = TypeVar("T")


class Asked(NamedTuple):
    """What a request asks for, by whatever door: the model, parameters, small pictures, the digest of all."""

    model: Engine
    parameters: ImageParameters
    inputs: EditInputs | None
    digest: str


class _CardUnknown(Exception):
    """The model never was loaded: its limits are not known before."""

    def __init__(self, model: Engine) -> None:
        super().__init__(model)
        self.model = model


@router.post("/generations", responses=IMAGE_ANSWERS)
async def create_images(request: Request, services: ServicesOf) -> Response:
    """Draws images from a prompt."""
    body = await services.bodies.json(request)
    fields, digest = await services.parser.run(lambda: parse_json_body(body), len(body))
    parameters = parse_parameters(fields, GenerationParameters)
    return await serve(request, services, Asked(services.model(parameters.model), parameters, None, digest))


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
        asked = await read_once_known(request, lambda: _read_edit(request, services, schema, body))
    return await serve(request, services, asked)


async def _read_edit(request: Request, services: Services, schema: EditSchema, body: Spool) -> Asked:
    """Only uploads whose turn it is are in memory."""
    content_type = request.headers["content-type"]
    async with services.uploads.turn(context_of(request.scope).client, body.size) as decoder:
        if content_type.partition(";")[0].strip().lower() == "application/json":
            document, digest = await services.parser.document(body, decoder)
            sent = await services.parser.run(lambda: edit_of_document(document, digest, schema), body.size)
        else:
            sent = await services.parser.run(lambda: edit_of_form(body, content_type, schema), body.size)
        return await shrink(services, sent, decoder)


async def read_once_known(request: Request, read: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What `read` gives, while the client is there. It is done again once its model's limits are known, if need be.

    Raises:
        DeadlineExceeded: the model took too long to load. ClientDisconnect: the client left.
    """
    while True:
        try:
            return await while_connected(request.receive, read())
        except _CardUnknown as unknown:
            await while_connected(request.receive, _load(request, unknown.model))


async def shrink(services: Services, sent: EditBody, decoder: Decoder) -> Asked:
    """An edit or a variation with its pictures made small. Called within `read_once_known`.

    Raises:
        InvalidRequest: as `read_pictures` does, or there is no such model.
    """
    model, parameters = services.model(sent.parameters.model), sent.parameters
    if model.card is None:
        raise _CardUnknown(model)
    edits = isinstance(parameters, EditParameters)
    redux = model.card.redux is not None and _weighs(parameters)
    box = upload_box(parameters.size, services.serving_limits(model), redux)
    mode: MaskMode = parameters.mask_mode if isinstance(parameters, EditParameters) else "alpha"
    check_mask_mode(mode, sent.pictures.mask is not None)
    check_count(len(sent.pictures.images), box.references.most if box.references and edits else 1)
    inputs = await read_pictures(decoder, sent.pictures, box, mode)
    # A variation's own transparency keeps nothing.
    return Asked(model, parameters, inputs if edits else EditInputs(inputs.image), sent.digest)


async def _load(request: Request, model: Engine) -> None:
    """Waits for the card of a model that never was loaded."""
    limit_s = read_client_timeout(request.headers).limit_s
    try:
        async with asyncio.timeout(limit_s):
            await model.wait_card()
    except TimeoutError:
        raise DeadlineExceeded(f"the model was not loaded within {limit_s:g} s") from None


def _weighs(parameters: ImageParameters) -> bool:
    """Whether an image encoder, where there is one, reads the pictures."""
    return isinstance(parameters, VariationParameters) or redux_of(parameters) is not None


async def serve(request: Request, services: Services, asked: Asked, form: Form = OF_IMAGES) -> Response:
    """The answer, as its door writes it. Raises as `serve_images` does."""
    if asked.model.card is None:
        await while_connected(request.receive, _load(request, asked.model))
    accept, limits = request.headers.get("accept", ""), services.serving_limits(asked.model)
    resolved = resolve_request(asked.parameters, asked.inputs, accept, limits)
    return await serve_now_or_later(ImageCall(services, request, asked.model, resolved, asked.digest, form))
