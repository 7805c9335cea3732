"""The request's target as the routes know it, whatever was typed: see `canonical_path`, and RFC 9112 section 3.2.2."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from fluxserve.server.http.paths import canonical_path

_ABSOLUTE = re.compile(r"https?://([^/]*)(.*)", re.IGNORECASE | re.DOTALL)


class Target:
    """Wraps what decides by path. HEAD is answered as GET, whose body the server does not send; a range is a
    GET's alone (RFC 9110, section 14.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = _canonical(scope)
        await self._app(scope, receive, send)


def _canonical(scope: Scope) -> Scope:
    """A copy: what is logged is what was sent. The host of an absolute target is the request's (RFC 9112, 3.2.2)."""
    path, headers = scope["path"], scope["headers"]
    if match := _ABSOLUTE.fullmatch(path):
        path = match[2] or "/"
        headers = [(b"host", match[1].encode()), *(each for each in headers if each[0] != b"host")]
    path, method = canonical_path(path), scope["method"]
    if method == "HEAD":
        method, headers = "GET", [each for each in headers if each[0] != b"range"]
    return {**scope, "path": path, "raw_path": path.encode(), "headers": headers, "method": method}
