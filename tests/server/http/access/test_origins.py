"""Origins and host names as people write them in options: they work, or the server does not start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.answers import parse
from tests.server.conftest import StartServer
from tests.server.running import GENERATIONS, Server, assert_error, exchange, until

PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}


@pytest.mark.behaviour(54)
def test_any_origin(start_server: StartServer) -> None:
    server = start_server("--cors-origin", "*")
    for origin in ("https://page.example", "http://localhost:3000", "null", "chrome-extension://abc"):
        preflight = server.request("OPTIONS", GENERATIONS, headers={"origin": origin, **PREFLIGHT})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] in ("*", origin)
        served = server.generate(headers={"origin": origin, "sec-fetch-site": "cross-site"})
        assert (served.status_code, served.headers["access-control-allow-origin"]) == (200, "*")


@pytest.mark.behaviour(54)
def test_patterns_and_spellings(start_server: StartServer) -> None:
    names = ("HTTPS://Page.Example/", "https://*.apps.example", "http://localhost:*", "https://own.example:443")
    server = start_server(*[flag for name in names for flag in ("--cors-origin", name)])
    allowed = ("https://page.example", "https://a.apps.example", "https://b.a.apps.example", "http://localhost:5173")
    for origin in (*allowed, "http://localhost", "https://own.example"):
        assert server.generate(headers={"origin": origin}).headers["access-control-allow-origin"] == origin
    refused = (
        "http://page.example",
        "https://apps.example",
        "https://evil.example:1.apps.example",
        "https://localhost:1",
    )
    for origin in (*refused, "https://evilapps.example", "http://localhost.evil.example", "null", "*"):
        error = assert_error(server.generate(headers={"origin": origin}), 403, "origin_not_allowed")
        assert origin in error["message"]


@pytest.mark.behaviour(53)
def test_host_names(start_server: StartServer) -> None:
    server = start_server("--allowed-host", "Host.Docker.Internal", "--allowed-host", "*.lan")
    for host in ("host.docker.internal", "HOST.docker.internal:1234", "host.docker.internal.", "a.lan", "b.a.lan:80"):
        assert server.get("/v1/models", headers={"host": host}).status_code == 200, host
    for host in ("host.containers.internal", "lan", "evillan", "a.lan.evil.example"):
        error = assert_error(server.get("/v1/models", headers={"host": host}), 403, "host_not_allowed")
        assert host in error["message"]
        assert "--allowed-host" in error["message"]
    until(lambda: '"refused": "host.containers.internal"' in server.log.read_text())
    everybody = start_server("--allowed-host", "*")
    assert everybody.get("/v1/models", headers={"host": "anything.example"}).status_code == 200


@pytest.mark.behaviour(53)
def test_health_answers_whoever_asks(server: Server) -> None:
    for path in ("/livez", "/readyz", "/health"):
        assert server.get(path, headers={"host": "10.1.2.3:1234"}).status_code == 200
        for head in (f"GET {path} HTTP/1.0\r\n\r\n", f"GET {path} HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n"):
            assert parse(exchange(server, [head.encode()])).status_code == 200
    assert_error(server.get("/metrics", headers={"host": "10.1.2.3"}), 403, "host_not_allowed")


@pytest.mark.behaviour(65)
@pytest.mark.parametrize(
    ("flag", "value", "wanted"),
    [
        ("--cors-origin", "page.example", "https://page.example"),
        ("--cors-origin", "https://page.example/app", "https://page.example"),
        ("--cors-origin", "https://*page.example", "https://*.page.example"),
        ("--cors-origin", "https://page.*", "https://*.page.example"),
        ("--allowed-host", "http://page.example/", "pictures.example"),
        ("--allowed-host", "page.*", "*.pictures.example"),
        ("--allowed-host", "a b", "pictures.example"),
    ],
)
def test_what_could_never_match_is_refused_at_start(tmp_path: Path, flag: str, value: str, wanted: str) -> None:
    command = [sys.executable, "-m", "fluxserve", "serve", "--port", "0", flag, value]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert result.returncode != 0
    assert wanted in "".join(result.stderr.split()), result.stderr
