"""Reading a request's body within bounds: type, length and rate are checked before the first byte is taken."""

from __future__ import annotations

from starlette.requests import Request

from fluxserve.errors import InvalidRequest
from fluxserve.server.http.context import context_of
from fluxserve.server.limits.rate_limit import RateLimiter
from fluxserve.server.limits.upload_budget import UploadBudget

_PICTURES = ("image/png", "image/jpeg", "image/webp", "application/octet-stream", "")
JSON_CAP, FORM_CAP = 2**20, 64 * 2**20


class BodyReader:
    """Reads bodies; what all of them may hold in memory together is bounded."""

    def __init__(self, limiter: RateLimiter | None) -> None:
        self._limiter = limiter
        self._budget = UploadBudget()

    async def json(self, request: Request) -> bytes:
        """The body of a JSON route. Raises as `_read` does."""
        return await self._read(request, ("application/json",), JSON_CAP)

    async def form(self, request: Request) -> bytes:
        """The body of a route that takes pictures, in a form or JSON. Raises as `_read` does."""
        return await self._read(request, ("multipart/form-data", "application/json"), FORM_CAP)

    async def document(self, request: Request) -> bytes:
        """The body of a route that takes pictures in JSON. Raises as `_read` does."""
        return await self._read(request, ("application/json",), FORM_CAP)

    async def inference(self, request: Request) -> bytes:
        """The body of a route that takes JSON or a picture's bytes, declared or not. Raises as `_read` does."""
        return await self._read(request, ("application/json", *_PICTURES), FORM_CAP)

    async def message(self, request: Request) -> bytes:
        """The body of a message that holds requests: those are counted, it is not. Raises as `_read` does."""
        return await self._read(request, ("application/json",), FORM_CAP, counted=False)

    async def _read(self, request: Request, media_types: tuple[str, ...], cap: int, *, counted: bool = True) -> bytes:
        """The whole body.

        Raises:
            InvalidRequest: `unsupported_media_type` or `request_too_large`, before reading on.
            RateLimitExceeded, QueueFull: the client's rate is used up, or the upload gave way to faster ones.
            ClientDisconnect: the client left.
        """
        _check_type(request, media_types)
        _check_length(request, cap)
        if counted:
            self._check_rate(request)
        body = bytearray()
        async with self._budget.receiving(context_of(request.scope).client) as upload:
            async for chunk in request.stream():
                body += chunk
                if len(body) > cap:
                    raise _too_large(request, cap)
                self._budget.add(upload, len(chunk))
        return bytes(body)

    def _check_rate(self, request: Request) -> None:
        if self._limiter is not None:
            context = context_of(request.scope)
            context.headers.update(self._limiter.take(context.client))
            self._limiter.check(context.client)


def _check_type(request: Request, media_types: tuple[str, ...]) -> None:
    sent = request.headers.get("content-type", "")
    if sent.partition(";")[0].strip().lower() not in media_types:
        raise InvalidRequest(
            f"this route accepts {' or '.join(media_types)}, got {sent[:64] or 'no content type'}",
            code="unsupported_media_type",
        )


def _check_length(request: Request, cap: int) -> None:
    declared = request.headers.get("content-length")
    if declared is not None and int(declared) > cap:
        raise _too_large(request, cap)


def _too_large(request: Request, cap: int) -> InvalidRequest:
    context_of(request.scope).headers["connection"] = "close"
    return InvalidRequest(f"the body may be at most {cap} bytes long", code="request_too_large")
