"""POST /v1/images/generations, /edits and /variations: from a body to an order. Knows nothing of how orders are run."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from fluxserve.errors import InvalidRequest
from fluxserve.server.answers.sse import EventKind
from fluxserve.server.contract.multipart import Form, parse_form
from fluxserve.server.contract.openapi import IMAGE_ANSWERS
from fluxserve.server.contract.parameters import parse_parameters, parse_text_fields
from fluxserve.server.contract.resolve import Inputs, place_order
from fluxserve.server.contract.schemas import EditParameters, GenerationParameters, ImageParameters, VariationParameters
from fluxserve.server.contract.strict_json import parse_json_object
from fluxserve.server.contract.uploads import Picture
from fluxserve.server.serve_images import Desk, Errand
from fluxserve.server.services import Services, ServicesOf

router = APIRouter(prefix="/v1/images", tags=["images"])

_IMAGE_FIELDS = ("image", "image[]")


@router.post("/generations", responses=IMAGE_ANSWERS)
async def create_images(request: Request, services: ServicesOf) -> Response:
    """Draws images from a prompt."""
    body = await services.bodies.json(request)
    parameters = parse_parameters(parse_json_object(body), GenerationParameters)
    return await _order(request, services, parameters, None, hashlib.sha256(body).hexdigest(), "image_generation")


@router.post("/edits", responses=IMAGE_ANSWERS)
async def edit_image(request: Request, services: ServicesOf) -> Response:
    """Redraws a picture, or the transparent part of its mask."""
    form, digest = await _read_form(request, services)
    parameters = parse_parameters(parse_text_fields(_text_fields(form), EditParameters), EditParameters)
    inputs = await _edit_inputs(form, services)
    return await _order(request, services, parameters, inputs, digest, "image_edit")


@router.post("/variations", responses=IMAGE_ANSWERS)
async def vary_image(request: Request, services: ServicesOf) -> Response:
    """Draws other pictures like the one sent."""
    form, digest = await _read_form(request, services)
    parameters = parse_parameters(parse_text_fields(_text_fields(form), VariationParameters), VariationParameters)
    inputs = Inputs(await _read_image(_one_image(form), services))
    return await _order(request, services, parameters, inputs, digest, "image_edit")


async def _order(
    request: Request,
    services: Services,
    parameters: ImageParameters,
    inputs: Inputs | None,
    digest: str,
    kind: EventKind,
) -> Response:
    order = place_order(parameters, inputs, request.headers.get("accept", ""), services.terms)
    return await Desk(services).answer(Errand(request, order, digest, kind))


async def _read_form(request: Request, services: Services) -> tuple[Form, str]:
    """The form, and the digest of its parts."""
    body = await services.bodies.form(request)

    def parse() -> tuple[Form, str]:
        form = parse_form(body, request.headers["content-type"])
        return form, _digest(form)

    return await asyncio.to_thread(parse)


def _text_fields(form: Form) -> Mapping[str, Any]:
    """The scalars of a form; pictures must come as files."""
    fields = form.fields()
    for name in ("image", "image[]", "mask", "markup", "image_url", "images"):
        if name in fields:
            raise InvalidRequest(
                f"{name} must be sent as a file; URLs are never fetched", param=name, code="unsupported_value"
            )
    return fields


async def _edit_inputs(form: Form, services: Services) -> Inputs:
    image = await _read_image(_one_image(form), services)
    masks = [data for name, data in form.files if name == "mask"]
    if any(name == "markup" for name, _ in form.files):
        raise InvalidRequest("markup is not supported; send a mask", param="markup", code="unsupported_value")
    if len(masks) > 1:
        raise InvalidRequest("at most one mask is taken", param="mask", code="invalid_mask")
    if masks:
        return Inputs(image, await _read_mask(masks[0], image, services))
    return Inputs(image, image if image.transparent else None)


def _one_image(form: Form) -> bytes:
    images = [data for name, data in form.files if name in _IMAGE_FIELDS]
    if not images:
        raise InvalidRequest("image is required, as a file", param="image", code="missing_required_parameter")
    if len(images) > 1:
        raise InvalidRequest(f"one image is taken, got {len(images)}", param="image", code="too_many_images")
    return images[0]


async def _read_image(data: bytes, services: Services) -> Picture:
    return await services.pictures.read(data, "image", "invalid_image")


async def _read_mask(data: bytes, image: Picture, services: Services) -> Picture:
    mask = await services.pictures.read(data, "mask", "invalid_mask")
    if (mask.width, mask.height) != (image.width, image.height):
        raise InvalidRequest(
            f"mask must have the image's size {image.width}x{image.height}, got {mask.width}x{mask.height}",
            param="mask",
            code="invalid_mask",
        )
    if not mask.has_alpha:
        raise InvalidRequest(
            "mask must have an alpha channel; transparent pixels are redrawn", param="mask", code="invalid_mask"
        )
    return mask


def _digest(form: Form) -> str:
    """Of the parts' content: boundaries differ from try to try."""
    digest = hashlib.sha256()
    for name, data in [*((name, text.encode()) for name, text in form.texts), *form.files]:
        digest.update(b"%d %d " % (len(name.encode()), len(data)) + name.encode() + data)
    return digest.hexdigest()
