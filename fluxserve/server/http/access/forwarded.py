"""Under which address the client sees this server: what URLs start with, and which pages are its own.

Proxies tell it in X-Forwarded-Proto, -Host, -Port and -Prefix or in Forwarded (RFC 7239); they count from trusted
proxies alone, and of several only what the nearest said: those before it could be the client's invention.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import Scope

from fluxserve.config import ServerConfig
from fluxserve.server.http.client_address import is_within, parse_address

_HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_PAIR = re.compile(r'([A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*))')
_ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_OWN_PORTS = {"http": "80", "https": "443"}


class PublicAddress(NamedTuple):
    """authority: host[:port], without the scheme's own port. prefix: empty, or begins with a slash."""

    scheme: str
    authority: str
    prefix: str

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}"


def base_url(scope: Scope, config: ServerConfig) -> str:
    """`scheme://host[/prefix]`: the configured one, else as a trusted proxy says, else as the request was received."""
    if config.public_url is not None:
        return config.public_url.rstrip("/")
    return public_address(scope, config).url


def public_address(scope: Scope, config: ServerConfig) -> PublicAddress:
    """What the request's headers say; where they make no sense, the address that it came to."""
    headers = Headers(scope=scope)
    told = _told(headers) if _is_trusted(scope, config.trusted_proxies) else {}
    port = told.get("port", "")
    scheme = told.get("proto", "").lower() or ("https" if port == "443" else "")
    scheme = scheme if scheme in _OWN_PORTS else scope["scheme"]
    match = _HOST.fullmatch(told.get("host") or headers.get("host", ""))
    if match is None:
        return PublicAddress(scheme, _own_authority(scope, config), "")
    port = match[2] or (port if re.fullmatch(r"[0-9]{1,5}", port) and port not in _OWN_PORTS.values() else "")
    prefix = "/" + told.get("prefix", "").strip("/")
    authority = f"{match[1]}:{port}" if port and port != _OWN_PORTS[scheme] else match[1]
    return PublicAddress(scheme, authority, prefix if prefix != "/" and _PREFIX.fullmatch(prefix) else "")


def _own_authority(scope: Scope, config: ServerConfig) -> str:
    host, port = scope.get("server") or (config.host, config.port)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _told(headers: Headers) -> Mapping[str, str]:
    """proto, host, port and prefix, those that are told; X-Forwarded-* wins over Forwarded."""
    forwarded = _last_element(",".join(headers.getlist("forwarded")))
    told = {name: _last(headers, f"x-forwarded-{name}") for name in ("proto", "host", "port", "prefix")}
    return {**forwarded, **{name: value for name, value in told.items() if value}}


def _last(headers: Headers, name: str) -> str:
    return ",".join(headers.getlist(name)).rpartition(",")[2].strip()


def _last_element(forwarded: str) -> dict[str, str]:
    """proto and host of the nearest proxy's element, unquoted."""
    elements = _ELEMENT.findall(forwarded)
    pairs = _PAIR.findall(elements[-1]) if elements else []
    values = {name.lower(): re.sub(r"\\(.)", r"\1", quoted) or plain for name, quoted, plain in pairs}
    return {name: value for name, value in values.items() if name in ("proto", "host")}


def _is_trusted(scope: Scope, networks: tuple[str, ...]) -> bool:
    address = parse_address(scope["client"][0]) if scope.get("client") else None
    return address is not None and is_within(address, [ipaddress.ip_network(network) for network in networks])
