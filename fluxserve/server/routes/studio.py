"""GET / and /studio: the page to draw in, static files that speak the public API. It opens without a key."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from fluxserve.errors import InvalidRequest
from fluxserve.server.http.paths import STUDIO

router = APIRouter(include_in_schema=False)

_PAGE = "index.html"
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)


@dataclass(frozen=True)
class _Asset:
    """A file as it is, and compressed."""

    content: bytes
    zipped: bytes
    media_type: str
    etag: str


@router.get("/")
@router.get(STUDIO)
async def page(request: Request) -> Response:
    return _answer(_PAGE, request)


@router.get(STUDIO + "/")
async def page_in_a_folder() -> Response:
    """The page names its files as seen from /studio, whatever lies before that."""
    return RedirectResponse(f"..{STUDIO}")


@router.get(STUDIO + "/{name}")
async def asset(name: str, request: Request) -> Response:
    return _answer(name, request)


def _answer(name: str, request: Request) -> Response:
    found = _assets().get(name)
    if found is None:
        raise InvalidRequest("there is no such file of the studio", code="not_found")
    headers = {
        "cache-control": "no-cache",
        "content-security-policy": _POLICY,
        "etag": found.etag,
        "referrer-policy": "no-referrer",
        "vary": "accept-encoding",
        "x-content-type-options": "nosniff",
    }
    if request.headers.get("if-none-match") == found.etag:
        return Response(status_code=304, headers=headers)
    if "gzip" not in request.headers.get("accept-encoding", "").lower():
        return Response(found.content, media_type=found.media_type, headers=headers)
    return Response(found.zipped, media_type=found.media_type, headers={**headers, "content-encoding": "gzip"})


@cache
def _assets() -> dict[str, _Asset]:
    """All files of the page, by name."""
    return {
        file.name: _asset(file.read_bytes(), file.name.rpartition(".")[2])
        for file in (files("fluxserve") / "studio").iterdir()
    }


def _asset(content: bytes, kind: str) -> _Asset:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return _Asset(content, gzip.compress(content, mtime=0), _MEDIA_TYPES[kind], etag)
