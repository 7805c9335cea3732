"""GET /images/{name}: the pictures behind the URLs, for whoever knows the name."""

from __future__ import annotations

import re
import time

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from fluxserve.errors import InvalidRequest
from fluxserve.server.answers.images import MEDIA_TYPES
from fluxserve.server.answers.parts import PartsAnswer
from fluxserve.server.contract.openapi import FILE_ANSWERS
from fluxserve.server.http.context import context_of
from fluxserve.server.http.paths import PICTURES
from fluxserve.server.jobs.image_store import PICTURE_NAME
from fluxserve.server.services import ServicesOf

router = APIRouter(tags=["images"])

_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,15})-([0-9]{0,15})[ \t]*", re.IGNORECASE)


@router.get(PICTURES + "/{name:path}", response_class=Response, responses=FILE_ANSWERS)
async def get_image(name: str, request: Request, services: ServicesOf) -> Response:
    """The picture, or one range of it, until its URL expires."""
    if not PICTURE_NAME.fullmatch(name) or not request.scope["path"].endswith(name):  # the router drops a newline
        raise InvalidRequest("no such image", code="image_not_found")
    if (address := await services.store.address(name)) is not None:
        return RedirectResponse(address, headers={"cache-control": "no-store"})
    picture = await services.store.get(name)
    headers = {
        "accept-ranges": "bytes",
        "cache-control": f"private, max-age={max(0, int(picture.expires_at - time.monotonic()))}, immutable",
        "content-security-policy": "sandbox",
        "cross-origin-resource-policy": "cross-origin",
        "etag": f'"{name}"',
        "x-content-type-options": "nosniff",
    }
    media_type = MEDIA_TYPES[name.rpartition(".")[2]]
    wanted = _range(request, headers["etag"])
    if wanted is None:
        return PartsAnswer([picture.data], media_type, picture, headers=headers)
    part = _part(wanted, len(picture.data))
    if not part:
        context_of(request.scope).headers["content-range"] = f"bytes */{len(picture.data)}"
        raise InvalidRequest(
            f"the range lies outside the image's {len(picture.data)} bytes", code="range_not_satisfiable"
        )
    headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{len(picture.data)}"
    return PartsAnswer([picture.data[part.start : part.stop]], media_type, picture, 206, headers)


def _range(request: Request, etag: str) -> tuple[str, str] | None:
    """First and last byte of the one range asked for, as sent; None: the whole (RFC 9110, section 14.2).

    Several ranges, what is no range, what belongs to another picture or to a method but GET get the whole.
    """
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or request.method != "GET" or request.headers.get("if-range", etag) != etag:
        return None
    first, last = match[1], match[2]
    backwards = first and last and int(last) < int(first)
    return None if backwards or first == last == "" else (first, last)


def _part(wanted: tuple[str, str], size: int) -> range:
    """The bytes that there are of a range; empty: none."""
    first, last = wanted
    if first == "":
        return range(max(0, size - int(last)), size)
    return range(int(first), min(int(last) + 1, size) if last else size)
