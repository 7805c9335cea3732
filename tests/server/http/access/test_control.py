"""Who may call: keys, hosts, origins, rates. What stays open."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.reliability.answers import assert_answer
from tests.server.conftest import StartServer
from tests.server.running import GENERATIONS, Server, assert_error, exchange, until

KEYS = {"FLUXSERVE_API_KEY": "first,zweiter-schlüssel"}


@pytest.mark.fault(69)
@pytest.mark.behaviour(52)
def test_keys(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\ufeffthird\n\n fourth \n# comment\n #fifth\nsixth#6\t # of a laptop\n")
    server = start_server("--api-key-file", str(tmp_path / "keys"), variables=KEYS)

    def status(*authorization: bytes) -> int:
        return models_status(server, *authorization)

    for key in (b"first", "zweiter-schlüssel".encode(), b"third", b"fourth", b"sixth#6"):
        assert status(b"Bearer " + key) == 200
    assert status(b"bearer first") == 200
    for wrong in (
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer wrong",
        b"first",
        b"Basic first",
        b"Bearer \xe9",
        b"Bearer firs",
        b"Bearer # comment",
        b"Bearer comment",
        b"Bearer #fifth",
        b"Bearer fifth",
        b"Bearer sixth#6\t # of a laptop",
    ):
        assert status(wrong) == 401
    assert status() == 401
    assert status(b"Bearer first", b"Bearer first") == 401
    for path in (
        "/v1/models/x",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/nowhere",
        "/livez/x",
        "/images",
        "/v1",
        "/studiox",
    ):
        assert_error(server.get(path), 401, "invalid_api_key")
    assert_error(server.generate(), 401, "invalid_api_key")
    for path in ("/livez", "/readyz", "/health", "/health/", "/", "/studio", "/studio/app.js"):
        assert server.get(path).status_code == 200
    url = server.generate(headers={"authorization": "Bearer first"}).json()["data"][0]["url"]
    assert server.get(url).status_code == 200
    assert_error(server.request("POST", url), 401, "invalid_api_key")
    log = server.log.read_text()
    assert "first" not in log
    assert "third" not in log


@pytest.mark.behaviour(52)
@pytest.mark.parametrize("authorization", [b"Bearer foobar", b"Bearer ", b"Bearer", b"", b"Basic eDp5"])
def test_without_keys_everybody_is_let_in(server: Server, authorization: bytes) -> None:
    assert models_status(server, authorization) == 200


def models_status(server: Server, *authorization: bytes) -> int:
    """The status of GET /v1/models with these Authorization headers, byte for byte."""
    lines = [b"GET /v1/models HTTP/1.1", b"Host: localhost", b"Connection: close"]
    lines += [b"Authorization: " + value for value in authorization]
    return int(exchange(server, [b"\r\n".join(lines) + b"\r\n\r\n"]).split()[1])


@pytest.mark.behaviour(53)
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:1234", "[::1]:1234", "[::1]"])
def test_local_hosts_are_served(server: Server, host: str) -> None:
    assert server.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.behaviour(53)
def test_origins(server: Server) -> None:
    def post(**headers: str) -> httpx.Response:
        return server.generate(headers={name.replace("_", "-"): value for name, value in headers.items()})

    for origin in ("http://evil.example", "null", "http://localhost.evil", "http://localhost:9", "file://", "http://["):
        assert_error(post(origin=origin), 403, "origin_not_allowed")
    assert_error(post(sec_fetch_site="cross-site"), 403, "origin_not_allowed")
    assert post(origin=server.url).status_code == 200
    assert post(origin=server.url, sec_fetch_site="same-origin").status_code == 200
    assert server.get("/v1/models", headers={"origin": "http://evil.example"}).status_code == 200


@pytest.mark.behaviour(54)
def test_cors_is_off_by_default(server: Server) -> None:
    response = server.get("/v1/models", headers={"origin": "http://page.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]
    preflight = {"origin": "http://page.example", "access-control-request-method": "POST"}
    error = assert_error(server.request("OPTIONS", GENERATIONS, headers=preflight), 403, "origin_not_allowed")
    assert "http://page.example" in error["message"]
    assert "--cors-origin" in error["message"]
    until(lambda: '"refused": "http://page.example"' in server.log.read_text())


@pytest.mark.behaviour(54)
def test_cors_for_exact_origins(start_server: StartServer) -> None:
    server = start_server("--cors-origin", "https://page.example", "--api-key", "secret")
    origin = {"origin": "https://page.example"}
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = server.request("OPTIONS", GENERATIONS, headers={**origin, **preflight})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    for foreign in ("https://page.example.evil", "http://page.example", "https://page.example:8443", "null"):
        refused = server.request("OPTIONS", GENERATIONS, headers={"origin": foreign, **preflight})
        assert_error(refused, 403, "origin_not_allowed")
        assert "access-control-allow-origin" not in refused.headers
    refused = server.generate(headers=origin)
    assert_error(refused, 401, "invalid_api_key")
    assert refused.headers["access-control-allow-origin"] == "https://page.example"
    served = server.generate(headers={**origin, "authorization": "Bearer secret"})
    assert served.status_code == 200
    assert "access-control-allow-credentials" not in served.headers
    assert {"x-request-id", "x-fluxserve-warning", "retry-after", "x-ratelimit-limit-requests"} <= {
        name.strip() for name in served.headers["access-control-expose-headers"].split(",")
    }


def test_rates(start_server: StartServer) -> None:
    server = start_server("--rate-limit", "2", "--api-key", "one", "--api-key", "two")

    def post(key: str, **fields: object) -> httpx.Response:
        return server.generate(headers={"authorization": f"Bearer {key}"}, **fields)

    served = post("one")
    assert [served.headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining", "reset")] == [
        "2",
        "1",
        "30s",
    ]
    assert_error(post("one", n=0), 400, "invalid_value", "n")
    refused = post("one")
    assert_error(refused, 429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert post("two").status_code == 200
    assert server.get("/v1/models", headers={"authorization": "Bearer one"}).status_code == 200


def test_binding_beyond_this_machine_needs_a_key(start_server: StartServer, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fluxserve", "serve", "--host", "0.0.0.0", "--port", "0"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert result.returncode == 78
    assert len(result.stderr.splitlines()) == 2
    assert "FLUXSERVE_API_KEY" in result.stderr
    server = start_server("--host", "0.0.0.0", variables={"FLUXSERVE_API_KEY": "secret"}, ready=False)
    assert server.get("/livez", headers={"host": "anything.example"}).status_code == 200


@pytest.mark.behaviour(38)
def test_refusals_of_raw_requests_have_the_shape_too(server: Server) -> None:
    answer = exchange(server, [b"GET /v1/models HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n"])
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "host_not_allowed"


@pytest.mark.fault(91)
def test_hosts_beyond_loopback(start_server: StartServer) -> None:
    def status(server: Server, host: str, path: str = "/v1/models") -> int:
        key = {"authorization": "Bearer secret"}
        response = httpx.get(local(server) + path, headers={"host": host, **key}, trust_env=False)
        if path == "/v1/models":
            assert_answer(91, response, response.status_code)
        return response.status_code

    def local(server: Server) -> str:
        return server.url.replace("0.0.0.0", "127.0.0.1")

    everywhere = ("--host", "0.0.0.0", "--api-key", "secret")
    open_to_all = start_server(*everywhere)
    assert {status(open_to_all, host) for host in ("nas.local:1234", "192.168.1.5", "evil.example")} == {200}
    for named in (("--allowed-host", "nas.local"), ("--public-url", "https://nas.local:8443/flux")):
        server = start_server(*everywhere, *named)
        assert [status(server, host) for host in ("nas.local", "NAS.local:1234", "127.0.0.1", "localhost")] == [200] * 4
        assert [status(server, host) for host in ("evil.example", "nas.local.evil", "192.168.1.5", "")] == [403] * 4
        assert {status(server, "10.1.2.3:1234", path) for path in ("/livez", "/readyz", "/health")} == {200}
        assert status(server, "10.1.2.3", "/livez/more") == 403
