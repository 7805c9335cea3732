"""Who may call: hosts, origins and keys, decided before anything of the request is read.

Default deny, by `scope["path"]` alone: what is not listed as open needs a key where keys are configured.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Collection, Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from fluxserve.config import ServerConfig
from fluxserve.errors import FluxserveError, InvalidRequest, QueueFull
from fluxserve.server.http.client_address import client_address
from fluxserve.server.http.context import context_of
from fluxserve.server.http.errors import error_response
from fluxserve.server.http.instrumentation import WARNING_HEADER
from fluxserve.server.http.paths import HEALTH_PATHS, IMAGE_REQUESTS, PICTURES
from fluxserve.server.http.protocol import OVER_CAPACITY

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_EXPOSED = (
    "x-request-id",
    WARNING_HEADER,
    "retry-after",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)


class ApiKeys:
    """The accepted keys, as hashes. Without any, every request passes."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def client(self, authorization: list[str], address: str) -> str:
        """Whose request it is: by key where there are keys, else by address.

        Raises:
            InvalidRequest: `invalid_api_key`: no key, a wrong one, or more than one header.
        """
        if not self._digests:
            return address
        scheme, _, token = authorization[0].partition(" ") if len(authorization) == 1 else ("", "", "")
        digest = hashlib.sha256(token.strip().encode("latin-1")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise InvalidRequest(
                "the API key is missing or wrong; send one `Authorization: Bearer KEY` header", code="invalid_api_key"
            )
        return digest.hex()[:16]


class AccessControl:
    """Turns away what may not call. check_serving: raises while no image request can be taken."""

    def __init__(self, app: ASGIApp, config: ServerConfig, check_serving: Callable[[], object]) -> None:
        self._app = app
        self._keys = ApiKeys(config.api_keys)
        self._hosts = _allowed_hosts(config) if is_loopback(config.host) else None
        self._origins = frozenset(config.cors_origins)
        self._public = _authority(config.public_url or "")
        self._check_serving = check_serving
        self._proxies = config.trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except FluxserveError as error:
                await error_response(error, scope, {"connection": "close"})(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        if OVER_CAPACITY in scope.get("state", {}) and path not in HEALTH_PATHS:
            raise QueueFull("too many connections are open; try again", retry_after_s=1)
        if method == "POST" and path.startswith(f"{IMAGE_REQUESTS}/"):
            self._check_serving()
        self._check_host(headers.get("host", ""))
        if method not in _READING:
            self._check_origin(headers)
        address = client_address(scope, self._proxies)
        is_open = path in HEALTH_PATHS or path.startswith(f"{PICTURES}/")
        context_of(scope).client = (
            address if is_open and method in _READING else self._keys.client(headers.getlist("authorization"), address)
        )

    def _check_host(self, host: str) -> None:
        if self._hosts is not None and _without_port(host) not in self._hosts:
            raise InvalidRequest(
                "requests under this Host are refused; allow it with --allowed-host", code="host_not_allowed"
            )

    def _check_origin(self, headers: Headers) -> None:
        """A web page of another origin could otherwise post on its reader's behalf."""
        origin = headers.get("origin")
        if origin in self._origins:
            return
        own = {headers.get("host", "").lower(), self._public} - {None}
        foreign = origin is not None and _authority(origin) not in own
        if foreign or headers.get("sec-fetch-site") == "cross-site":
            raise InvalidRequest(
                "requests from pages of another origin are refused; allow it with --cors-origin",
                code="origin_not_allowed",
            )


class Cors(CORSMiddleware):
    """Starlette's CORS for exact origins, without credentials; refusals in OpenAI's shape."""

    def __init__(self, app: ASGIApp, origins: Iterable[str]) -> None:
        super().__init__(
            app,
            allow_origins=list(origins),
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_refused_preflight(Headers(scope=scope), scope["method"], self.allow_origins):
            error = InvalidRequest(
                "requests from this origin are refused; allow it with --cors-origin", code="origin_not_allowed"
            )
            await error_response(error, scope)(scope, receive, send)
            return
        await super().__call__(scope, receive, send)


def _is_refused_preflight(headers: Headers, method: str, origins: Collection[str]) -> bool:
    asks = method == "OPTIONS" and "access-control-request-method" in headers
    return asks and headers.get("origin") not in origins


def is_loopback(host: str) -> bool:
    """Whether a bind address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _allowed_hosts(config: ServerConfig) -> frozenset[str]:
    public = [_without_port(_authority(config.public_url))] if config.public_url else []
    return frozenset(
        ["localhost", "127.0.0.1", "[::1]", config.host, *public, *map(_without_port, config.allowed_hosts)]
    )


def _authority(url: str) -> str | None:
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


def _without_port(authority: str | None) -> str:
    return re.sub(r":[0-9]*$", "", (authority or "").lower().removesuffix("."))
