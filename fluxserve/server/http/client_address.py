"""Whose request it is, by address: the peer's, or the one that trusted proxies name."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import Scope

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_WITH_PORT = re.compile(r"\[(?P<six>[0-9A-Fa-f:.]+)\](:[0-9]+)?|(?P<four>[0-9.]+):[0-9]+")


def client_address(scope: Scope, proxies: Sequence[str]) -> str:
    """The nearest address that is no trusted proxy's, from the connection back along X-Forwarded-For.

    proxies: addresses and networks. What stands in the header before that address could be the client's invention.
    A peer that has no address is `local`: a socket of this machine's, or words that another server took for one.
    """
    peer = scope["client"][0] if scope.get("client") else "local"
    networks = [ipaddress.ip_network(network) for network in proxies]
    lists = Headers(scope=scope).getlist("x-forwarded-for")
    forwarded = [text.strip() for one in lists for text in one.split(",")]
    nearest = parse_address(peer)
    while forwarded and nearest is not None and is_within(nearest, networks):
        further = parse_address(forwarded.pop())
        if further is None:
            break
        nearest = further
    return "local" if nearest is None else str(nearest)


def parse_address(text: str) -> Address | None:
    """The address, with or without a port; IPv4 that is written as IPv6 is IPv4. None: it is none."""
    match = _WITH_PORT.fullmatch(text)
    try:
        address = ipaddress.ip_address((match["six"] or match["four"]) if match else text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_within(address: Address, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    return any(address in network for network in networks)
