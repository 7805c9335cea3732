"""A table of every route: whatever door a request comes through, keys, rates, the queue's bound and the filter hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from fluxserve.config import ServerConfig
from fluxserve.server.app import create_routes
from fluxserve.server.doors.mcp import McpDoor
from fluxserve.server.http.paths import draws
from fluxserve.server.services import Services
from tests.server import running
from tests.server.doors.test_mcp import call, text_of
from tests.server.doors.test_webui import bare
from tests.server.running import EDITS, GENERATIONS, VARIATIONS, Server, png, until

OPEN = {"/livez", "/readyz", "/health", "/", "/studio", "/studio/", "/studio/{name}", "/images/{name:path}"}
"""What answers without a key. All else needs one."""
OTHER_POSTS = {
    "/mcp",
    *(f"/sdapi/v1/{name}" for name in ("interrupt", "skip", "options", "png-info")),
    *(f"/v1/models/{{name:path}}/{verb}" for verb in ("load", "unload")),
}
"""What takes a POST and draws nothing by itself; what agents ask for is asked of another route."""


def routes_of(config: ServerConfig) -> list[tuple[str, str]]:
    """(method, path) of all that the application of this configuration has."""
    services = cast(Services, SimpleNamespace(config=config))
    contexts = iter_route_contexts(create_routes(services, McpDoor(services)).routes)
    return sorted({(method, str(each.path)) for each in contexts for method in each.methods or () if method != "HEAD"})


ROUTES = routes_of(ServerConfig())

Answer = httpx.Response | str
Ask = Callable[[Server, str, str], Answer]
"""Asks for a picture: server, key, prompt. The answer, or what an agent is told."""


@dataclass(frozen=True)
class Way:
    """One way to ask for a picture, through a route."""

    path: str
    ask: Ask


def _json(path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Way:
    """body: "PROMPT" stands for the prompt."""

    def ask(server: Server, key: str, prompt: str) -> Answer:
        filled = _filled(body, prompt)
        return server.request("POST", path, json=filled, headers={"authorization": f"Bearer {key}", **(headers or {})})

    return Way(path, ask)


def _filled(value: Any, prompt: str) -> Any:
    if isinstance(value, dict):
        return {name: _filled(each, prompt) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, prompt) for each in value]
    return prompt if value == "PROMPT" else value


def _form(path: str, fields: dict[str, str]) -> Way:
    def ask(server: Server, key: str, prompt: str) -> Answer:
        filled = _filled(fields, prompt)
        return server.send_form(path, filled, [("image", png())], headers={"authorization": f"Bearer {key}"})

    return Way(path, ask)


def _raw_picture(server: Server, key: str, prompt: str) -> Answer:
    headers = {"authorization": f"Bearer {key}", "content-type": "image/png"}
    return server.request("POST", "/hf", content=png(), headers=headers)


def _agent(way: str, tool: str, **arguments: Any) -> Way:
    def ask(server: Server, key: str, prompt: str) -> Answer:
        return text_of(call(server, way, tool, key=key, prompt=prompt, **arguments))

    return Way("/mcp", ask)


PICTURE = "data:image/png;base64," + bare(png())
TOOLS = [{"type": "image_generation"}]
MESSAGES = [{"content": [{"type": "input_text", "text": "PROMPT"}, {"type": "input_image", "image_url": PICTURE}]}]
WAYS: dict[str, Way] = {
    "generation": _json(GENERATIONS, {"prompt": "PROMPT"}),
    "later": _json(GENERATIONS, {"prompt": "PROMPT"}, {"prefer": "respond-async"}),
    "stream": _json(GENERATIONS, {"prompt": "PROMPT", "stream": True}),
    "edit": _form(EDITS, {"prompt": "PROMPT"}),
    "edit later": _json(EDITS, {"prompt": "PROMPT", "image": PICTURE}, {"prefer": "respond-async, wait=1"}),
    "variation": _form(VARIATIONS, {}),
    "hf": _json("/hf", {"inputs": "PROMPT"}),
    "hf edit": _json("/hf", {"inputs": bare(png()), "parameters": {"prompt": "PROMPT"}}),
    "hf variation": Way("/hf", _raw_picture),
    "txt2img": _json("/sdapi/v1/txt2img", {"prompt": "PROMPT"}),
    "img2img": _json("/sdapi/v1/img2img", {"prompt": "PROMPT", "init_images": [PICTURE]}),
    "response": _json("/v1/responses", {"input": "PROMPT", "tools": TOOLS}),
    "response stream": _json("/v1/responses", {"input": "PROMPT", "tools": TOOLS, "stream": True}),
    "response edit": _json("/v1/responses", {"input": MESSAGES, "tools": TOOLS}),
    "mcp draw": _agent("auto", "draw"),
    "mcp edit": _agent("legacy", "edit", image=PICTURE),
    "stdio draw": _agent("stdio", "draw"),
}
ASKED = {name: (way.ask, f"key-{at}") for at, (name, way) in enumerate(WAYS.items())}
"""Each with a key of its own."""
KEYS = [key for _, key in ASKED.values()]


def code_of(answer: Answer) -> tuple[int | None, str]:
    """(status, code), in whichever shape it is told; agents are told the code in brackets."""
    if isinstance(answer, str):
        return None, answer.rpartition("(")[2].partition(")")[0]
    body = answer.json()
    error = body["error"]
    code = error if isinstance(error, str) else error["code"]
    return answer.status_code, body.get("error_type", code)


def refused(way: str, answer: Answer, status: int, code: str) -> None:
    got = code_of(answer)
    assert got in ((status, code), (None, code)), (way, answer)


DOORS = {"mcp": "/mcp", "hf": "/hf", "sdapi": "/sdapi/", "responses": "/v1/responses"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A key for each way, each with a rate of its own, a short queue, and a filter of words."""
    flags = ["--rate-limit", "2", "--max-queue", "1", "--content-filter", "tests.server.content_filters:no_dogs"]
    for key in KEYS:
        flags += ["--api-key", key]
    server = running.start(flags, tmp_path_factory.mktemp("guarded")).wait_ready()
    yield server
    assert server.stop() == 0, server.log.read_text()


def concrete(path: str) -> str:
    return path.replace("{name:path}", "x").replace("{name}", "app.js").replace("{id}", "x")


@pytest.mark.behaviour(156)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_needs_a_key_or_is_open_by_name(guarded: Server, method: str, path: str) -> None:
    answer = guarded.request(method, concrete(path), json={} if method == "POST" else None)
    if path in OPEN and method == "GET":
        assert answer.status_code != 401
        return
    body = answer.json()
    assert answer.status_code == 401, (method, path)
    assert "invalid_api_key" in str(body)
    assert "API key is missing or wrong" in str(body)


@pytest.mark.behaviour(156)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_refuses_foreign_hosts_and_pages(guarded: Server, method: str, path: str) -> None:
    if path not in ("/livez", "/readyz", "/health"):
        foreign = guarded.request(method, concrete(path), headers={"host": "evil.example"})
        assert (foreign.status_code, "host_not_allowed" in foreign.text) == (403, True), (method, path)
    if method != "GET":
        page = guarded.request(method, concrete(path), headers={"origin": "http://evil.example"})
        assert (page.status_code, "origin_not_allowed" in page.text) == (403, True), (method, path)


@pytest.mark.behaviour(156)
def test_no_door_passes_by_filter_or_rate(guarded: Server) -> None:
    """Two requests a minute: the filter's refusal is one, the next is drawn, the third is too many."""
    for way, (ask, key) in ASKED.items():
        if "variation" not in way:
            refused(way, ask(guarded, key, "a dog"), 400, "content_policy_violation")
        else:
            ask(guarded, key, "")
        answer = ask(guarded, key, "a cat")
        assert isinstance(answer, str) or answer.status_code in (200, 202), (way, answer.text)
        refused(way, ask(guarded, key, "a cat"), 429, "rate_limit_exceeded")


@pytest.fixture
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One is drawn, and others wait until even those have no place who have nothing in the queue."""
    fillers = [f"filler-{number}" for number in range(8)]
    flags = ["--max-queue", "1"]
    for key in (*KEYS, *fillers):
        flags += ["--api-key", key]
    server = running.start(flags, tmp_path_factory.mktemp("full")).wait_ready()
    statuses = []
    for number, key in enumerate(fillers):
        headers = {"authorization": f"Bearer {key}", "prefer": "respond-async"}
        fields = {"seed": 1561 + number, "num_inference_steps": 200}
        statuses.append(server.generate("a cat [slow:step:0.5]", headers=headers, **fields).status_code)
        until(lambda: server.count("step", 1561) >= 1)
    assert statuses[0] == 202
    assert statuses[-1] == 429
    yield server
    server.stop(9)


@pytest.mark.behaviour(156)
def test_no_door_passes_by_a_full_queue(full: Server) -> None:
    for way, (ask, key) in ASKED.items():
        began = time.monotonic()
        refused(way, ask(full, key, "a cat"), 429, "queue_full")
        assert time.monotonic() - began < 20
    assert full.count("begin", 1562) == 0


@pytest.mark.behaviour(156)
def test_the_table_has_every_route_that_draws() -> None:
    """A new one is either asked above, and its requests are counted, or named as one that draws nothing."""
    posts = {path for method, path in ROUTES if method == "POST"}
    drawing = posts - OTHER_POSTS
    assert posts >= OTHER_POSTS
    assert drawing == {path for path in posts if draws(path)}
    assert drawing | {"/mcp"} == {way.path for way in WAYS.values()}


@pytest.mark.behaviour(156)
@pytest.mark.parametrize(("option", "prefix"), DOORS.items())
def test_each_door_is_off_by_its_option(option: str, prefix: str) -> None:
    left = routes_of(ServerConfig(**{option: False}))
    assert set(ROUTES) - set(left) == {route for route in ROUTES if route[1].startswith(prefix)} != set()
