"""Paths as people and their clients type them."""

from __future__ import annotations

import json

import httpx
import pytest

from fluxserve.server.http.paths import canonical_path
from tests.reliability.answers import parse
from tests.server.conftest import StartServer
from tests.server.running import EDITS, GENERATIONS, VARIATIONS, Server, assert_error, exchange, png

BODY = json.dumps({"prompt": "a cat"}).encode()


def ask(server: Server, method: str, target: str, body: bytes = b"", host: str = "localhost") -> httpx.Response:
    """The answer to a target sent to the letter."""
    head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return parse(exchange(server, [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body]))


@pytest.mark.behaviour(66)
@pytest.mark.parametrize(
    "target",
    [
        "/v1//images/generations",
        "//v1/images//generations//",
        "/v1/images/generations/",
        "/v1/images/generations/?api-version=2024-02-01",
        "/images/generations",
        "/images/generations/",
        "/V1/Images/Generations",
        "/v1/v1/images/generations",
        "/v1/images/generations/images/generations",
        "/v1/images/images/generations",
        "/v1/images/edits/images/generations",
        "/images/generations/images/generations",
        "/openai/v1/images/generations",
        "http://localhost/v1/images/generations",
        "HTTP://127.0.0.1:1234/images/generations/",
    ],
)
def test_generations_are_found(server: Server, target: str) -> None:
    answer = ask(server, "POST", target, BODY)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["url"]


@pytest.mark.behaviour(66)
@pytest.mark.parametrize(
    "path", ["/images/edits", "/images/variations/", "/v1/images//edits", "/images/edits/images/edits"]
)
def test_forms_are_found(server: Server, path: str) -> None:
    assert server.send_form(path, {"prompt": "a cat"}, [("image", png())]).status_code == 200


@pytest.mark.behaviour(66)
def test_models_are_found(server: Server) -> None:
    listed = server.get("/v1/models").json()
    for target in (
        "/v1/models/",
        "/models",
        "/models/",
        "/v1//models",
        "/v1/images/generations/models",
        "/v1/v1/models",
    ):
        assert ask(server, "GET", target).json() == listed, target
    for target in ("/models/fluxserve/fake", "/v1/models/fluxserve/fake/", "/v1/images/edits/models/default"):
        assert ask(server, "GET", target).json()["id"] == "fluxserve/fake", target
    assert_error(ask(server, "GET", "/models/sdxl"), 404, "model_not_found", "model")


@pytest.mark.behaviour(66)
@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions", "/v1/completions", "/v1/response", "/v1/embeddings", "/chat/completions", "/v1/images/x"],
)
def test_other_routes_say_what_there_is(server: Server, path: str) -> None:
    message = assert_error(server.request("POST", path, json={"model": "x"}), 404, "not_found")["message"]
    assert "only draws pictures" in message
    assert all(route in message for route in (GENERATIONS, EDITS, VARIATIONS, "/v1/models"))


@pytest.mark.behaviour(66)
def test_entrances_lead_somewhere(server: Server) -> None:
    """The root to the studio, the API's to its docs."""
    assert "fluxserve studio" in server.get("/").text
    for path in ("/v1", "/v1/"):
        assert server.get(path).headers["location"] == f"{server.url}/docs", path
    for path in ("/", "/v1"):
        assert server.request("HEAD", path, follow_redirects=True).status_code == 200


@pytest.mark.behaviour(66)
def test_head_wherever_get_is(server: Server) -> None:
    picture = server.generate().json()["data"][0]["url"]
    for path in ("/livez", "/readyz", "/health", "/metrics", "/openapi.json", "/docs", "/v1/models", picture):
        head, whole = server.request("HEAD", path), server.get(path)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-type"] == whole.headers["content-type"]
    assert server.request("HEAD", "/v1/models/sdxl").status_code == 404
    assert server.request("HEAD", GENERATIONS).status_code == 405


@pytest.mark.behaviour(53, 66)
def test_the_host_of_an_absolute_target_counts(server: Server) -> None:
    assert_error(ask(server, "GET", "http://evil.example/v1/models"), 403, "host_not_allowed")
    assert ask(server, "GET", "http://localhost/v1/models", host="evil.example").status_code == 200
    url = ask(server, "POST", f"http://localhost:99{GENERATIONS}", BODY).json()["data"][0]["url"]
    assert url.startswith("http://localhost:99/images/")


@pytest.mark.behaviour(52)
def test_no_way_of_typing_gets_around_the_key(start_server: StartServer) -> None:
    server = start_server("--api-key", "secret")
    for target in (
        "//v1//models",
        "/models",
        "/images/generations/models",
        "http://localhost/models",
        "/livez/../metrics",
    ):
        assert_error(ask(server, "GET", target), 401, "invalid_api_key")
    for target in ("/images/generations", "//images/edits", "/images/edits/images/variations"):
        assert_error(ask(server, "POST", target, BODY), 401, "invalid_api_key")
    assert ask(server, "GET", "//livez").status_code == 200


def test_pictures_keep_their_paths() -> None:
    for path in ("/images/a/", "/images//a", "/images/models", "/images/"):
        assert canonical_path(path) in (path, "/v1/models")
    assert canonical_path("/images/abc//") == "/images/abc//"
