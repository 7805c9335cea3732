"""Pages of other origins: which may call, and how a refusal tells whoever runs the server."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from fluxserve.errors import InvalidRequest
from fluxserve.server.http.context import context_of
from fluxserve.server.http.errors import error_response
from fluxserve.server.http.instrumentation import WARNING_HEADER

_EXPOSED = (
    "x-request-id",
    WARNING_HEADER,
    "retry-after",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)
ANY = "*"
_UNSHOWN = re.compile(r"[^\x21-\x7e]")


class Origins:
    """The origins that may call, as `--cors-origin` names them: each may have * for a port or names."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [re.compile(_expression(pattern)) for pattern in patterns]

    def allow(self, origin: str | None) -> bool:
        return origin is not None and any(pattern.fullmatch(origin) for pattern in self._patterns)


def _expression(pattern: str) -> str:
    if pattern == ANY:
        return ".*"
    return re.escape(pattern).replace(r":\*", "(:[0-9]+)?").replace(r"\*", "[^/:]*")


class Cors(CORSMiddleware):
    """Starlette's CORS, without credentials, for the origins allowed; refused preflights in OpenAI's shape."""

    def __init__(self, app: ASGIApp, patterns: Collection[str]) -> None:
        self._origins = Origins(patterns)
        super().__init__(
            app,
            allow_origins=[ANY] if ANY in patterns else [],
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )

    def is_allowed_origin(self, origin: str) -> bool:
        return self._origins.allow(origin)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            asks = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
            if not self._origins.allow(headers.get("origin")):
                refusal = error_response(origin_refused(scope, headers.get("origin")), scope) if asks else self.app
                await refusal(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def origin_refused(scope: Scope, origin: str | None) -> InvalidRequest:
    """The refusal, which names the origin; the log's line does too."""
    shown = context_of(scope).refused = printable(origin or "") or "another origin"
    return InvalidRequest(
        f"requests from pages of {shown} are refused; allow them with --cors-origin", code="origin_not_allowed"
    )


def printable(header: str) -> str:
    """As much of a header's value as a message and the log take."""
    return _UNSHOWN.sub("", header)[:128]


def authority(url: str) -> str | None:
    """host[:port] of an absolute URL, without the scheme's own port; None for `null` and for what is no URL."""
    try:
        parts = urlsplit(url.lower())
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return host if port in (None, {"http": 80, "https": 443}.get(parts.scheme)) else f"{host}:{port}"
