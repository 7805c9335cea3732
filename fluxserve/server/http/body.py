"""Reading a request's body within bounds: type, length and rate are checked before the first byte is taken."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, closing
from typing import BinaryIO

from starlette.requests import Request

from fluxserve.errors import InvalidRequest
from fluxserve.server.http.context import context_of
from fluxserve.server.http.spool import Spool
from fluxserve.server.limits.rate_limit import RateLimiter
from fluxserve.server.limits.upload_budget import UploadBudget

_PICTURES = ("image/png", "image/jpeg", "image/webp", "application/octet-stream", "")
JSON_CAP, JSON_PICTURES_CAP, FORM_CAP = 2**20, 64 * 2**20, 64 * 2**20
SMALL_DOCUMENT_CAP = 8 * 2**20
"""Bytes. The last: of JSON with pictures that is parsed in the front, where other threads wait for it."""


class BodyReader:
    """Reads bodies; how much of them may be under way together is bounded. make_file: see `Spool`."""

    def __init__(self, limiter: RateLimiter | None, make_file: Callable[[], BinaryIO]) -> None:
        self._limiter = limiter
        self._make_file = make_file
        self._budget = UploadBudget()

    async def json(self, request: Request) -> bytes:
        """The body of a JSON route. Raises as `_read` does."""
        async with self._read(request, {"application/json": JSON_CAP}) as body:
            return body.read()

    @asynccontextmanager
    async def form(self, request: Request) -> AsyncIterator[Spool]:
        """The body of a route that takes pictures, in a form or JSON. Raises as `_read` does."""
        async with self._read(
            request, {"multipart/form-data": FORM_CAP, "application/json": JSON_PICTURES_CAP}
        ) as body:
            yield body

    @asynccontextmanager
    async def document(self, request: Request, cap: int = JSON_PICTURES_CAP) -> AsyncIterator[Spool]:
        """The body of a route that takes pictures in JSON. Raises as `_read` does."""
        async with self._read(request, {"application/json": cap}) as body:
            yield body

    @asynccontextmanager
    async def inference(self, request: Request) -> AsyncIterator[Spool]:
        """The body of a route that takes JSON or a picture's bytes, declared or not. Raises as `_read` does."""
        caps = {"application/json": JSON_PICTURES_CAP, **dict.fromkeys(_PICTURES, FORM_CAP)}
        async with self._read(request, caps) as body:
            yield body

    async def any(self, request: Request, *, counted: bool) -> bytes:
        """A body that is passed on, of whatever type. counted: by the client's rate. Raises as `_read` does."""
        own_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        async with self._read(request, {own_type: FORM_CAP}, counted=counted) as body:
            return body.read()

    async def message(self, request: Request) -> bytes:
        """The body of a message that holds requests: those are counted, it is not. Raises as `_read` does."""
        async with self._read(request, {"application/json": SMALL_DOCUMENT_CAP}, counted=False) as body:
            return body.read()

    @asynccontextmanager
    async def _read(self, request: Request, caps: Mapping[str, int], *, counted: bool = True) -> AsyncIterator[Spool]:
        """The whole body. caps: bytes, by media type.

        Raises:
            InvalidRequest: `unsupported_media_type` or `request_too_large`, before reading on.
            RateLimitExceeded, QueueFull: the client's rate is used up, or the upload gave way to faster ones.
            StorageFull: a large body finds no room on the disk.
            ClientDisconnect: the client left.
        """
        cap = caps[_media_type(request, caps)]
        _check_length(request, cap)
        if counted:
            self._check_rate(request)
        with closing(Spool(self._make_file)) as body:
            async with self._budget.receiving(context_of(request.scope).client) as upload:
                async for chunk in request.stream():
                    if body.size + len(chunk) > cap:
                        raise _too_large(request, cap)
                    self._budget.add(upload, len(chunk))
                    await body.add(chunk)
            yield body

    def _check_rate(self, request: Request) -> None:
        if self._limiter is not None:
            context = context_of(request.scope)
            context.headers.update(self._limiter.take(context.client))
            self._limiter.check(context.client)


def _media_type(request: Request, accepted: Collection[str]) -> str:
    sent = request.headers.get("content-type", "")
    media_type = sent.partition(";")[0].strip().lower()
    if media_type not in accepted:
        raise InvalidRequest(
            f"this route accepts {' or '.join(accepted)}, got {sent[:64] or 'no content type'}",
            code="unsupported_media_type",
        )
    return media_type


def _check_length(request: Request, cap: int) -> None:
    declared = request.headers.get("content-length")
    if declared is not None and int(declared) > cap:
        raise _too_large(request, cap)


def _too_large(request: Request, cap: int) -> InvalidRequest:
    context_of(request.scope).headers["connection"] = "close"
    return InvalidRequest(f"the body may be at most {cap} bytes long", code="request_too_large")
