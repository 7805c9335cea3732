"""Who may call: hosts, origins and keys, decided before anything of the request is read.

Default deny, by `scope["path"]` alone: what is not listed as open needs a key where keys are configured.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from fluxserve.config import ServerConfig
from fluxserve.errors import ConfigError, FluxserveError, InvalidRequest, QueueFull
from fluxserve.server.http.access.forwarded import public_address
from fluxserve.server.http.access.origins import ANY, Origins, authority, origin_refused, printable
from fluxserve.server.http.client_address import client_address
from fluxserve.server.http.context import context_of
from fluxserve.server.http.errors import error_response
from fluxserve.server.http.paths import HEALTH_PATHS, MODELS, PICTURES, WEBUI, draws, is_page
from fluxserve.server.http.protocol import OVER_CAPACITY

_READING = frozenset({"GET", "HEAD", "OPTIONS"})


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
        self._keys = ApiKeys([*config.api_keys, *config.admin_keys] if config.api_keys else [])
        self._admins = ApiKeys(config.admin_keys)
        self._config = config
        named = bool(config.allowed_hosts or config.public_url)
        self._hosts = _allowed_hosts(config) if named or is_loopback(config.host) else [ANY]
        self._origins = Origins(config.cors_origins)
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
        if method == "POST" and draws(path):
            self._check_serving()
        if path not in HEALTH_PATHS:  # probes come under the address of a container
            self._check_host(scope, headers.get("host"))
        if method not in _READING:
            self._check_origin(scope, headers)
        address = client_address(scope, self._proxies)
        is_open = method in _READING and self._is_open(path)
        authorization = _credentials(headers, path)
        context_of(scope).client = address if is_open else self._keys.client(authorization, address)
        if method == "POST" and path.startswith(f"{MODELS}/"):
            self._check_admin(authorization, address)

    def _is_open(self, path: str) -> bool:
        return path in HEALTH_PATHS or path.startswith(f"{PICTURES}/") or (self._config.studio and is_page(path))

    def _check_admin(self, authorization: list[str], address: str) -> None:
        """Who has a key for pictures may not take a model away from the others."""
        if self._config.api_keys and not self._config.admin_keys:
            raise InvalidRequest("no key may load or unload models here (--admin-key)", code="admin_key_required")
        try:
            self._admins.client(authorization, address)
        except InvalidRequest:
            raise InvalidRequest(
                "loading and unloading models takes an admin key (--admin-key)", code="admin_key_required"
            ) from None

    def _check_host(self, scope: Scope, host: str | None) -> None:
        """A page could otherwise reach this machine by a name of its own. Without any (HTTP/1.0), it is no browser."""
        if host is None or any(_is_named(_without_port(host), allowed) for allowed in self._hosts):
            return
        name = context_of(scope).refused = printable(_without_port(host)) or "that was sent"
        raise InvalidRequest(
            f"requests under the Host {name} are refused; allow it with --allowed-host", code="host_not_allowed"
        )

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """A web page of another origin could otherwise post on its reader's behalf."""
        origin = headers.get("origin")
        if self._origins.allow(origin):
            return
        foreign = origin is not None and authority(origin) not in self._own(scope, headers, origin)
        if foreign or headers.get("sec-fetch-site") == "cross-site":
            raise origin_refused(scope, origin)

    def _own(self, scope: Scope, headers: Headers, origin: str) -> set[str | None]:
        """The authorities whose pages are this server's own, as the origin's scheme writes them."""
        scheme = origin.partition(":")[0]
        seen = headers.get("host", ""), public_address(scope, self._config).authority
        own = {authority(f"{scheme}://{each}") for each in seen} | {authority(self._config.public_url or "")}
        return own - {None}


def _credentials(headers: Headers, path: str) -> list[str]:
    """The Authorization headers. Clients of WebUI know names and passwords alone: the password is the key."""
    sent = headers.getlist("authorization")
    if not path.startswith(f"{WEBUI}/") or len(sent) != 1 or sent[0][:6].lower() != "basic ":
        return sent
    try:
        password = base64.b64decode(sent[0][6:], validate=True).partition(b":")[2]
    except binascii.Error:
        return sent
    return [f"Bearer {password.decode('latin-1')}"]


def check_access(config: ServerConfig) -> None:
    """Raises ConfigError for an address that others can reach without a key."""
    if not (is_loopback(config.host) or config.api_keys or config.insecure):
        raise ConfigError(
            f"Without a key, {config.host} would let everybody who can reach this machine use it.\n"
            "Set FLUXSERVE_API_KEY to a secret, or pass --insecure to accept that."
        )


def is_loopback(host: str) -> bool:
    """Whether a bind address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _allowed_hosts(config: ServerConfig) -> list[str]:
    public = [_without_port(authority(config.public_url))] if config.public_url else []
    return ["localhost", "127.0.0.1", "[::1]", config.host, *public, *map(_without_port, config.allowed_hosts)]


def _is_named(host: str, allowed: str) -> bool:
    """allowed: a name, * for all, or *.NAME for those that end so."""
    return host == allowed or allowed == ANY or (allowed.startswith("*.") and host.endswith(allowed[1:]))


def _without_port(authority: str | None) -> str:
    return re.sub(r":[0-9]*$", "", (authority or "").lower()).removesuffix(".")
