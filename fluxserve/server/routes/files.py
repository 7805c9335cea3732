"""GET /images/{name}: the pictures behind the URLs, for whoever knows the name."""

from __future__ import annotations

import re

from fastapi import APIRouter, Request
from starlette.responses import Response

from fluxserve.errors import InvalidRequest
from fluxserve.server.answers.images import MEDIA_TYPES
from fluxserve.server.contract.openapi import FILE_ANSWERS
from fluxserve.server.http.paths import PICTURES
from fluxserve.server.jobs.image_store import PICTURE_NAME
from fluxserve.server.services import ServicesOf

router = APIRouter(tags=["images"])

_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})")


@router.get(PICTURES + "/{name:path}", response_class=Response, responses=FILE_ANSWERS)
async def get_image(name: str, request: Request, services: ServicesOf) -> Response:
    """The picture, or one range of it, until its URL expires."""
    if not PICTURE_NAME.fullmatch(name) or not request.scope["path"].endswith(name):  # the router drops a newline
        raise InvalidRequest("no such image", code="image_not_found")
    picture = await services.store.get(name)
    headers = {
        "accept-ranges": "bytes",
        "cache-control": f"private, max-age={int(picture.expires_in_s)}, immutable",
        "content-security-policy": "sandbox",
        "cross-origin-resource-policy": "cross-origin",
        "x-content-type-options": "nosniff",
    }
    media_type = MEDIA_TYPES[name.rpartition(".")[2]]
    wanted = _range(request.headers.get("range"), len(picture.data))
    if wanted is None:
        return Response(picture.data, media_type=media_type, headers=headers)
    headers["content-range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{len(picture.data)}"
    return Response(picture.data[wanted.start : wanted.stop], 206, media_type=media_type, headers=headers)


def _range(header: str | None, size: int) -> range | None:
    """The one byte range asked for; None: the whole. Several ranges, and what is no range, get the whole."""
    match = _RANGE.fullmatch(header or "")
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        start, stop = max(0, size - int(match[2])), size
    else:
        start, stop = int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)
    if start >= stop:
        raise InvalidRequest(f"the range lies outside the image's {size} bytes", code="range_not_satisfiable")
    return range(start, stop)
