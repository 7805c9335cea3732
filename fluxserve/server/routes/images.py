"""POST /v1/images/generations, /edits and /variations: from a body to a resolved request."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from fluxserve.errors import InvalidRequest
from fluxserve.input_images import EditInputs
from fluxserve.server.contract.multipart import Form, parse_form
from fluxserve.server.contract.openapi import IMAGE_ANSWERS
from fluxserve.server.contract.parameters import Parameters, parse_parameters, parse_text_fields
from fluxserve.server.contract.resolve import resolve_request
from fluxserve.server.contract.schemas import EditParameters, GenerationParameters, ImageParameters, VariationParameters
from fluxserve.server.contract.strict_json import parse_json_object
from fluxserve.server.contract.uploads import upload_box
from fluxserve.server.http.context import context_of
from fluxserve.server.http.disconnect import while_connected
from fluxserve.server.http.paths import IMAGE_REQUESTS
from fluxserve.server.serve_images import ImageCall, serve_images
from fluxserve.server.services import Services, ServicesOf

router = APIRouter(prefix=IMAGE_REQUESTS, tags=["images"])

_IMAGE_FIELDS = ("image", "image[]")


@router.post("/generations", responses=IMAGE_ANSWERS)
async def create_images(request: Request, services: ServicesOf) -> Response:
    """Draws images from a prompt."""
    body = await services.bodies.json(request)
    fields = await services.parser.run(lambda: parse_json_object(body), len(body))
    parameters = parse_parameters(fields, GenerationParameters)
    return await _serve(request, services, parameters, None, hashlib.sha256(body).hexdigest())


@router.post("/edits", responses=IMAGE_ANSWERS)
async def edit_image(request: Request, services: ServicesOf) -> Response:
    """Redraws a picture, or the transparent part of its mask."""
    parameters, inputs, digest = await _read_edit(request, services, EditParameters)
    return await _serve(request, services, parameters, inputs, digest)


@router.post("/variations", responses=IMAGE_ANSWERS)
async def vary_image(request: Request, services: ServicesOf) -> Response:
    """Draws other pictures like the one sent."""
    parameters, inputs, digest = await _read_edit(request, services, VariationParameters)
    inputs = EditInputs(inputs.image)  # its own transparency keeps nothing
    return await _serve(request, services, parameters, inputs, digest)


async def _serve(
    request: Request,
    services: Services,
    parameters: ImageParameters,
    inputs: EditInputs | None,
    digest: str,
) -> Response:
    resolved = resolve_request(parameters, inputs, request.headers.get("accept", ""), services.serving_limits)
    return await serve_images(ImageCall(services, request, resolved, digest))


async def _read_edit(
    request: Request, services: Services, schema: type[Parameters]
) -> tuple[Parameters, EditInputs, str]:
    """(parameters, small pictures, the digest of all): what was uploaded is let go of before the job begins."""
    form, digest = await _read_form(request, services)
    parameters = parse_parameters(parse_text_fields(_text_fields(form), schema), schema)
    mask = _mask(form) if schema is EditParameters else None
    box, client = upload_box(parameters.size, services.serving_limits), context_of(request.scope).client
    reading = services.uploads.read(_one_image(form), mask, box, client)
    return parameters, await while_connected(request.receive, reading), digest


async def _read_form(request: Request, services: Services) -> tuple[Form, str]:
    """The form, and the digest of its parts."""
    body = await services.bodies.form(request)

    def parse() -> tuple[Form, str]:
        form = parse_form(body, request.headers["content-type"])
        return form, _digest(form)

    return await services.parser.run(parse, len(body))


def _text_fields(form: Form) -> Mapping[str, Any]:
    """The scalars of a form; pictures must come as files."""
    fields = form.fields()
    for name in ("image", "image[]", "mask", "markup", "image_url", "images"):
        if name in fields:
            raise InvalidRequest(
                f"{name} must be sent as a file; URLs are never fetched", param=name, code="unsupported_value"
            )
    return fields


def _mask(form: Form) -> bytes | None:
    masks = [data for name, data in form.files if name == "mask"]
    if any(name == "markup" for name, _ in form.files):
        raise InvalidRequest("markup is not supported; send a mask", param="markup", code="unsupported_value")
    if len(masks) > 1:
        raise InvalidRequest("send at most one mask", param="mask", code="invalid_mask")
    return masks[0] if masks else None


def _one_image(form: Form) -> bytes:
    images = [data for name, data in form.files if name in _IMAGE_FIELDS]
    if not images:
        raise InvalidRequest("image is required, as a file", param="image", code="missing_required_parameter")
    if len(images) > 1:
        raise InvalidRequest(f"send exactly one image, got {len(images)}", param="image", code="too_many_images")
    return images[0]


def _digest(form: Form) -> str:
    """Of the parts' content: boundaries differ from try to try."""
    digest = hashlib.sha256()
    for name, data in [*((name, text.encode()) for name, text in form.texts), *form.files]:
        digest.update(b"%d %d " % (len(name.encode()), len(data)) + name.encode())
        digest.update(data)
    return digest.hexdigest()
