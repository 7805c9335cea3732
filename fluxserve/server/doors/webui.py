"""POST /sdapi/v1/txt2img, img2img, png-info, interrupt, options; GET progress, options and lists: WebUI's contract.

Follows AUTOMATIC1111/stable-diffusion-webui `modules/api/api.py`, as its clients use it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from fluxserve.errors import InvalidRequest
from fluxserve.server.answers.form import Form
from fluxserve.server.contract.body_parser import parse_json_body
from fluxserve.server.contract.edit_body import EditBody
from fluxserve.server.contract.model_names import listed_names, model_id
from fluxserve.server.contract.parameters import parse_parameters
from fluxserve.server.contract.pictures import choose_pictures
from fluxserve.server.contract.schemas import EditParameters, GenerationParameters, VariationParameters
from fluxserve.server.doors import webui_lists
from fluxserve.server.doors.webui_answer import answer, repeated
from fluxserve.server.doors.webui_fields import picture_of, pictures_of, translate
from fluxserve.server.doors.webui_progress import Underway, state_of
from fluxserve.server.doors.webui_texts import infotext_of
from fluxserve.server.http.body import SMALL_DOCUMENT_CAP
from fluxserve.server.http.context import context_of
from fluxserve.server.http.paths import WEBUI
from fluxserve.server.http.spool import Spool
from fluxserve.server.routes.images import Asked, read_once_known, serve, shrink
from fluxserve.server.services import Services, ServicesOf

router = APIRouter(prefix=WEBUI, include_in_schema=False)


@router.post("/txt2img")
async def txt2img(request: Request, services: ServicesOf) -> Response:
    document, digest = await _document(request, services)
    fields = _fields(document, request, services, edits=False)
    parameters = parse_parameters(fields, GenerationParameters)
    asked = Asked(services.model(parameters.model), parameters, None, digest)
    return await _serve(request, services, asked, repeated(document))


@router.post("/img2img")
async def img2img(request: Request, services: ServicesOf) -> Response:
    return await _serve(request, services, *await _edit(request, services))


async def _edit(request: Request, services: Services) -> tuple[Asked, dict[str, Any]]:
    """(what is asked, what the answer repeats): the pictures sent are let go of before the job begins."""
    async with services.bodies.document(request) as body:
        return await read_once_known(request, lambda: _read_edit(request, services, body))


async def _read_edit(request: Request, services: Services, body: Spool) -> tuple[Asked, dict[str, Any]]:
    async with services.uploads.turn(context_of(request.scope).client, body.size) as decoder:
        document, digest = await services.parser.document(body, decoder)
        fields = _fields(document, request, services, edits=True)
        schema = EditParameters if str(fields.get("prompt") or "").strip() else VariationParameters
        if schema is VariationParameters:
            fields.pop("prompt", None)
        sent = EditBody(parse_parameters(fields, schema), pictures_of(document), digest)
        return await shrink(services, sent, decoder), repeated(document)


def _fields(document: dict[str, Any], request: Request, services: Services, *, edits: bool) -> dict[str, Any]:
    fields, warnings = translate(document, services.config.max_pixels, edits=edits)
    context_of(request.scope).warnings.extend(warnings)
    return fields


async def _serve(request: Request, services: Services, asked: Asked, parameters: dict[str, Any]) -> Response:
    with _underway(request).noted(context_of(request.scope), asked.model):
        return await serve(request, services, asked, Form(partial(answer, parameters)))


@router.get("/progress")
async def progress(request: Request) -> JSONResponse:
    """Of the client's own pictures alone."""
    return JSONResponse(state_of(_underway(request).jobs(context_of(request.scope).client)))


@router.post("/interrupt")
@router.post("/skip")
async def interrupt(request: Request) -> JSONResponse:
    """Cancels the client's own pictures."""
    for job, _ in _underway(request).jobs(context_of(request.scope).client):
        job.cancel()
    return JSONResponse({})


@router.post("/png-info")
async def png_info(request: Request, services: ServicesOf) -> JSONResponse:
    """What a PNG tells of how it was made."""
    document, _ = await _document(request, services)
    sent = choose_pictures([("image", picture_of(document.get("image"), "image"))], with_mask=False)
    items = webui_lists.texts_in(sent.images[0])
    return JSONResponse({"info": infotext_of(items), "items": items, "parameters": items})


@router.get("/options")
async def options(services: ServicesOf) -> JSONResponse:
    return JSONResponse(
        {"sd_model_checkpoint": model_id(services.models.default), "samples_format": "png", "sd_vae": "Automatic"}
    )


@router.post("/options")
async def set_options(request: Request, services: ServicesOf) -> JSONResponse:
    """The model that is served may be chosen; nothing else can be set."""
    document, _ = await _document(request, services)
    wanted = document.pop("sd_model_checkpoint", None)
    if wanted is not None and not isinstance(wanted, str):
        raise InvalidRequest("sd_model_checkpoint must be text", param="sd_model_checkpoint", code="invalid_type")
    services.model(wanted)
    context_of(request.scope).warnings.extend(f"ignored:{name[:64]}" for name in list(document)[:16])
    return JSONResponse(None)


@router.get("/{name}")
async def listed(name: str, services: ServicesOf) -> JSONResponse:
    """sd-models, samplers, schedulers, sd-vae, upscalers, loras and the lists that are empty here."""
    lists = webui_lists.lists(listed_names(services.models.engines))
    if name not in lists:
        raise InvalidRequest(f"{WEBUI} has {', '.join(lists)}, but no {name[:64]!r}", code="not_found")
    return JSONResponse(lists[name])


async def _document(request: Request, services: Services) -> tuple[dict[str, Any], str]:
    """(the body's object, the digest of the body)."""
    async with services.bodies.document(request, SMALL_DOCUMENT_CAP) as body:
        return await services.parser.run(lambda: parse_json_body(body.read()), body.size)


def _underway(request: Request) -> Underway:
    """Of the whole application."""
    underway = request.app.state.underway
    assert isinstance(underway, Underway)
    return underway
