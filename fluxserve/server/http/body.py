"""Reading a request's body within bounds: type, length and rate are checked before the first byte is taken."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from fluxserve.errors import InvalidRequest, QueueFull
from fluxserve.server.http.context import context_of
from fluxserve.server.limits.rate_limit import RateLimiter

JSON_CAP, FORM_CAP = 2**20, 64 * 2**20
ALL_BODIES_CAP = 512 * 2**20


class BodyReader:
    """Reads bodies; what all of them may hold in memory together is bounded."""

    def __init__(self, limiter: RateLimiter | None) -> None:
        self._limiter = limiter
        self._reserved = 0

    async def json(self, request: Request) -> bytes:
        """The body of a JSON route. Raises as `_read` does."""
        return await self._read(request, "application/json", JSON_CAP)

    async def form(self, request: Request) -> bytes:
        """The body of a multipart route. Raises as `_read` does."""
        return await self._read(request, "multipart/form-data", FORM_CAP)

    async def _read(self, request: Request, media_type: str, cap: int) -> bytes:
        """The whole body.

        Raises:
            InvalidRequest: `unsupported_media_type` or `request_too_large`, before reading on.
            RateLimitExceeded, QueueFull: the client's rate, or the memory for bodies, is used up.
            ClientDisconnect: the client left.
        """
        _check_type(request, media_type)
        declared = _declared_length(request, cap)
        self._check_rate(request)
        async with self._memory(cap if declared is None else declared):
            body = bytearray()
            async for chunk in request.stream():
                body += chunk
                if len(body) > cap:
                    raise _too_large(request, cap)
            return bytes(body)

    def _check_rate(self, request: Request) -> None:
        if self._limiter is not None:
            context = context_of(request.scope)
            context.headers.update(self._limiter.take(context.client))
            self._limiter.check(context.client)

    @asynccontextmanager
    async def _memory(self, size: int) -> AsyncIterator[None]:
        if self._reserved + size > ALL_BODIES_CAP:
            raise QueueFull("too many large requests are being received; try again", retry_after_s=5)
        self._reserved += size
        try:
            yield
        finally:
            self._reserved -= size


def _check_type(request: Request, media_type: str) -> None:
    sent = request.headers.get("content-type", "")
    if sent.partition(";")[0].strip().lower() != media_type:
        raise InvalidRequest(
            f"this route accepts {media_type}, got {sent[:64] or 'no content type'}", code="unsupported_media_type"
        )


def _declared_length(request: Request, cap: int) -> int | None:
    declared = request.headers.get("content-length")
    if declared is not None and int(declared) > cap:
        raise _too_large(request, cap)
    return None if declared is None else int(declared)


def _too_large(request: Request, cap: int) -> InvalidRequest:
    context_of(request.scope).headers["connection"] = "close"
    return InvalidRequest(f"the body may be at most {cap} bytes long", code="request_too_large")
