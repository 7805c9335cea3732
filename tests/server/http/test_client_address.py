"""Behind proxies, a client is the nearest address that is none of theirs."""

from __future__ import annotations

import json

import httpx
import pytest

from fluxserve.server.http.client_address import client_address
from tests.reliability.answers import assert_answer
from tests.server.conftest import StartServer

PROXIES = ("10.0.0.0/8", "127.0.0.1", "fd00::/8")


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("127.0.0.1", ["198.51.100.1", "198.51.100.2"], "198.51.100.2"),
        ("127.0.0.1", ["198.51.100.1, 198.51.100.2 ,10.1.2.3"], "198.51.100.2"),
        ("127.0.0.1", ["10.9.9.9, 10.1.2.3"], "10.9.9.9"),
        ("::ffff:127.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("fd00::1", ["2001:DB8::0:1"], "2001:db8::1"),
        ("127.0.0.1", ["[2001:db8::1]:443"], "2001:db8::1"),
        ("127.0.0.1", ["198.51.100.1:8080"], "198.51.100.1"),
        ("127.0.0.1", ["198.51.100.1, unknown"], "127.0.0.1"),
        ("127.0.0.1", [""], "127.0.0.1"),
        ("127.0.0.1", ["a" * 5000], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.1\x00"], "127.0.0.1"),
        ("junk", ["198.51.100.1"], "local"),
        ("", [], "local"),
    ],
)
def test_the_nearest_address_that_is_no_proxy(peer: str, forwarded: list[str], client: str) -> None:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    assert client_address({"type": "http", "client": (peer, 1), "headers": headers}, PROXIES) == client


def test_without_proxies_the_header_is_nothing() -> None:
    scope = {"type": "http", "client": ("127.0.0.1", 1), "headers": [(b"x-forwarded-for", b"198.51.100.1")]}
    assert client_address(scope, ()) == "127.0.0.1"


@pytest.mark.fault(81)
def test_forwarded_clients_are_several(start_server: StartServer) -> None:
    server = start_server("--trusted-proxies", "127.0.0.1", "--rate-limit", "2")

    def send(client: str, seed: int) -> httpx.Response:
        headers = {"x-forwarded-for": client, "idempotency-key": f"same {seed}"}
        return server.generate(seed=seed, headers=headers)

    alice, bob = send("198.51.100.1", 1), send("203.0.113.9, 198.51.100.2", 1)
    for answer in (alice, bob):
        assert_answer(81, answer, 200)
        assert "idempotent-replayed" not in answer.headers
    assert server.count("begin", 1) == 2
    assert send("198.51.100.1", 1).headers["idempotent-replayed"] == "true"
    assert_answer(81, send("203.0.113.9, 198.51.100.1", 3), 429)
    assert_answer(81, send("198.51.100.2", 4), 200)
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert {line["client"] for line in lines if "client" in line} >= {"198.51.100.1", "198.51.100.2"}
    assert not any(line.get("client") == "203.0.113.9" for line in lines)
