"""What the URLs handed out start with."""

from __future__ import annotations

import ipaddress
import re

from starlette.requests import Request

from fluxserve.config import ServerConfig
from fluxserve.server.http.client_address import is_within, parse_address

_AUTHORITY = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*")


def base_url(request: Request, config: ServerConfig) -> str:
    """`scheme://host[/prefix]`: the configured one, else as a trusted proxy says, else as the request was received."""
    if config.public_url is not None:
        return config.public_url.rstrip("/")
    scheme, host, prefix = request.scope["scheme"], request.headers.get("host", ""), ""
    if _is_trusted(request, config.trusted_proxies):
        forwarded = _last(request, "x-forwarded-proto")
        scheme = forwarded if forwarded in ("http", "https") else scheme
        host = _last(request, "x-forwarded-host") or host
        prefix = _last(request, "x-forwarded-prefix").rstrip("/")
    if not _AUTHORITY.fullmatch(host):
        host = f"{config.host}:{config.port}"
    return f"{scheme}://{host}{prefix if _PREFIX.fullmatch(prefix) else ''}"


def _last(request: Request, name: str) -> str:
    """What the nearest proxy said; those before it could be the client's invention."""
    return request.headers.get(name, "").rpartition(",")[2].strip()


def _is_trusted(request: Request, networks: tuple[str, ...]) -> bool:
    if request.client is None:
        return False
    address = parse_address(request.client.host)
    return address is not None and is_within(address, [ipaddress.ip_network(network) for network in networks])
