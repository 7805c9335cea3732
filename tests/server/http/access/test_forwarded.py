"""Picture URLs and own pages behind proxies, as common proxies tell of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.server import running
from tests.server.running import Server, assert_error


@pytest.fixture(scope="module")
def trusting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server behind a proxy on this machine, which passes Host on."""
    flags = ["--trusted-proxies", "127.0.0.0/8", "--allowed-host", "Pictures.Example"]
    server = running.start(flags, tmp_path_factory.mktemp("trusting")).wait_ready()
    yield server
    assert server.stop() == 0, server.log.read_text()


PROXIES: dict[str, tuple[dict[str, str], str]] = {
    "traefik": (
        {"x-forwarded-host": "p.example", "x-forwarded-port": "443", "x-forwarded-proto": "https"},
        "https://p.example",
    ),
    "nginx": ({"host": "pictures.example", "x-forwarded-proto": "https"}, "https://pictures.example"),
    "a port of its own": (
        {"x-forwarded-host": "p.example", "x-forwarded-port": "8443", "x-forwarded-proto": "https"},
        "https://p.example:8443",
    ),
    "the port twice": (
        {"x-forwarded-host": "p.example:8443", "x-forwarded-port": "443", "x-forwarded-proto": "https"},
        "https://p.example:8443",
    ),
    "the scheme's own port": ({"x-forwarded-host": "p.example:80"}, "http://p.example"),
    "443 alone": ({"x-forwarded-host": "p.example", "x-forwarded-port": "443"}, "https://p.example"),
    "a port that is none": ({"x-forwarded-host": "p.example", "x-forwarded-port": "x"}, "http://p.example"),
    "an address": ({"x-forwarded-host": "[2001:db8::1]", "x-forwarded-port": "8080"}, "http://[2001:db8::1]:8080"),
    "a prefix": ({"x-forwarded-host": "p.example", "x-forwarded-prefix": "/flux/a/"}, "http://p.example/flux/a"),
    "a prefix without slash": (
        {"x-forwarded-host": "p.example", "x-forwarded-prefix": "flux"},
        "http://p.example/flux",
    ),
    "no prefix": ({"x-forwarded-host": "p.example", "x-forwarded-prefix": "/"}, "http://p.example"),
    "upper case": ({"x-forwarded-host": "p.example", "x-forwarded-proto": "HTTPS"}, "https://p.example"),
    "RFC 7239": ({"forwarded": "for=192.0.2.6;host=p.example;proto=https"}, "https://p.example"),
    "RFC 7239, quoted": (
        {"forwarded": 'For="[2001:db8::1]"; Proto=https; Host="p.example:8443"'},
        "https://p.example:8443",
    ),
    "RFC 7239, nearest": (
        {"forwarded": 'host=evil.example;proto=http, for="a, b";host=p.example;proto=https'},
        "https://p.example",
    ),
    "both": ({"forwarded": "host=other.example;proto=https", "x-forwarded-host": "p.example"}, "https://p.example"),
}


@pytest.mark.behaviour(56)
@pytest.mark.parametrize("name", PROXIES)
def test_urls_are_as_the_proxy_says(trusting: Server, name: str) -> None:
    headers, base = PROXIES[name]
    url = trusting.generate(headers=headers).json()["data"][0]["url"]
    assert url.startswith(f"{base}/images/"), url
    assert trusting.get(f"/images/{url.rpartition('/')[2]}").status_code == 200


@pytest.mark.behaviour(56)
@pytest.mark.parametrize("host", ["evil.example/x?", "a b", "user@evil.example", "evil.example:x", "[::1"])
def test_a_host_that_is_none_is_the_address_it_came_to(trusting: Server, host: str) -> None:
    url = trusting.generate(headers={"x-forwarded-host": host}).json()["data"][0]["url"]
    assert url.startswith(f"{trusting.url}/images/")


@pytest.mark.behaviour(56)
def test_without_a_host_too(trusting: Server) -> None:
    body = b'{"prompt": "a cat"}'
    head = b"POST /v1/images/generations HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    answer = running.exchange(trusting, [head % len(body) + body])
    assert f'"url":"{trusting.url}/images/'.encode() in answer


@pytest.mark.behaviour(56)
def test_of_several_header_lines_the_last_counts(trusting: Server) -> None:
    lines = [("x-forwarded-host", "evil.example"), ("x-forwarded-host", "p.example")]
    answer = trusting.http.post(running.GENERATIONS, json={"prompt": "a cat"}, headers=lines)
    assert urlsplit(answer.json()["data"][0]["url"]).netloc == "p.example"


@pytest.mark.behaviour(53)
@pytest.mark.parametrize("name", PROXIES)
def test_a_page_of_the_forwarded_host_is_the_servers_own(trusting: Server, server: Server, name: str) -> None:
    headers, base = PROXIES[name]
    parts = urlsplit(base)
    origin = {"origin": f"{parts.scheme}://{parts.netloc}", "sec-fetch-site": "same-origin"}
    assert trusting.generate(headers={**headers, **origin}).status_code == 200
    assert_error(trusting.generate(headers={**headers, "origin": "https://evil.example"}), 403, "origin_not_allowed")
    untrusted = {name: value for name, value in headers.items() if name != "host"}
    assert_error(server.generate(headers={**untrusted, **origin}), 403, "origin_not_allowed")
