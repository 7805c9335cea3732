"""Agents, by the official SDK's client: over streamable HTTP in both of its protocols, and over stdio."""

from __future__ import annotations

import base64
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import httpx
import httpx2
import numpy as np
import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ImageContent, ResourceLink, TextContent

from fluxserve.server.doors.mcp_sessions import MOST_SESSIONS
from tests.fake_pipeline import expected_pixels
from tests.server.conftest import StartServer
from tests.server.running import Server, assert_error, picture, png, until

WAYS = ["auto", "legacy", "stdio"]


async def _with(server: Server, way: str, use: Callable[[Client], Awaitable[Any]], key: str | None) -> Any:
    if way == "stdio":
        command = ["-m", "fluxserve", "mcp", "--url", server.url]
        env = {"FLUXSERVE_API_KEY": key} if key else None
        async with Client(StdioServerParameters(command=sys.executable, args=command, env=env)) as client:
            return await use(client)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(headers=headers, timeout=60, trust_env=False) as http:
        transport = streamable_http_client(f"{server.url}/mcp", http_client=http)
        async with Client(transport, mode="auto" if way == "auto" else "legacy") as client:
            return await use(client)


def speak(server: Server, way: str, use: Callable[[Client], Awaitable[Any]], key: str | None = None) -> Any:
    """What `use` returns, given a client that is connected."""
    return anyio.run(partial(_with, server, way, use, key))


def call(server: Server, way: str, tool: str, key: str | None = None, **arguments: Any) -> CallToolResult:
    return speak(server, way, lambda client: client.call_tool(tool, arguments), key)


def text_of(result: CallToolResult) -> str:
    return " ".join(each.text for each in result.content if isinstance(each, TextContent))


@pytest.mark.behaviour(153)
@pytest.mark.parametrize("way", WAYS)
def test_drawing(server: Server, way: str) -> None:
    seed = 153001
    told: list[tuple[float, float | None, str | None]] = []

    async def use(client: Client) -> CallToolResult:
        async def on_progress(done: float, total: float | None, message: str | None) -> None:
            told.append((done, total, message))

        arguments = {"prompt": "a cat [slow:step:0.4]", "seed": seed, "n": 2, "output_format": "png"}
        return await client.call_tool("draw", arguments, progress_callback=on_progress)

    result = speak(server, way, use)
    assert not result.is_error, text_of(result)
    images = [each for each in result.content if isinstance(each, ImageContent)]
    links = [each for each in result.content if isinstance(each, ResourceLink)]
    for at, (image, link) in enumerate(zip(images, links, strict=True)):
        assert image.mime_type == link.mime_type == "image/png"
        expected = expected_pixels(seed + at, 64, 64)
        assert np.array_equal(picture(base64.b64decode(image.data)), expected)
        assert np.array_equal(picture(server.get(str(link.uri)).content), expected)
    assert [item["seed"] for item in result.structured_content["images"]] == [seed, seed + 1]
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert len({done for done, _, _ in told}) >= 3
    assert (told[-1][1], "step" in str(told[-1][2])) == (8, True)


@pytest.mark.behaviour(153)
@pytest.mark.parametrize("way", WAYS)
def test_editing_what_was_drawn_and_what_is_sent(server: Server, way: str) -> None:
    async def use(client: Client) -> list[CallToolResult]:
        drawn = await client.call_tool("draw", {"prompt": "a cat", "seed": 153010})
        url = drawn.structured_content["images"][0]["url"]
        bare = base64.b64encode(png()).decode()
        mask = "data:image/png;base64," + base64.b64encode(png(color=(0, 0, 0, 0), mode="RGBA")).decode()
        calls = [{"image": url}, {"image": [bare]}, {"image": bare, "mask": mask, "strength": 0.5}]
        return [await client.call_tool("edit", {"prompt": "a dog", "seed": 7, **each}) for each in calls]

    for result in speak(server, way, use):
        assert not result.is_error, text_of(result)
        image = next(each for each in result.content if isinstance(each, ImageContent))
        assert image.mime_type == "image/webp"
        assert np.asarray(picture(base64.b64decode(image.data))).shape == (64, 64, 3)


@pytest.mark.behaviour(153)
@pytest.mark.parametrize("way", WAYS)
def test_tools_and_models(server: Server, way: str) -> None:
    async def use(client: Client) -> tuple[Any, CallToolResult]:
        return await client.list_tools(), await client.call_tool("list_models", {})

    listed, models = speak(server, way, use)
    assert [tool.name for tool in listed.tools] == ["draw", "edit", "list_models"]
    draw = listed.tools[0].input_schema
    assert draw["required"] == ["prompt"]
    assert draw["properties"]["n"]["maximum"] == 10
    assert "fluxserve/fake: Patterns made from seeds, for tests." in text_of(models)


@pytest.mark.behaviour(153, 157)
@pytest.mark.parametrize("way", WAYS)
def test_refusals_reach_the_agent_in_our_words(server: Server, way: str) -> None:
    wrong = {
        "draw takes no argument 'sed'": ("draw", {"prompt": "a cat", "sed": 7}),
        "num_inference_steps must be an integer from 1 to 200, got 900": (
            "draw",
            {"prompt": "a cat", "num_inference_steps": 900},
        ),
        "the nearest is 1008x1008": ("draw", {"prompt": "a cat", "size": "1000x1000"}),
        "prompt is required (missing_required_parameter)": ("draw", {}),
        "there is no tool 'paint'": ("paint", {}),
        "the picture is not finite": ("draw", {"prompt": "a cat [nan:vae]"}),
        "other URLs are never fetched": ("edit", {"prompt": "x", "image": "http://169.254.169.254/a.png"}),
        "image must be the url": ("edit", {"prompt": "x", "image": 7}),
        "no such image": ("edit", {"prompt": "x", "image": f"{server.url}/images/{'a' * 54}.png"}),
        "image is required": ("edit", {"prompt": "x"}),
    }

    async def use(client: Client) -> dict[str, CallToolResult]:
        return {words: await client.call_tool(tool, arguments) for words, (tool, arguments) in wrong.items()}

    for words, result in speak(server, way, use).items():
        assert result.is_error
        assert words in text_of(result), (words, text_of(result))


@pytest.mark.behaviour(153)
@pytest.mark.parametrize("way", WAYS)
def test_cancelling_stops_within_a_step(server: Server, way: str) -> None:
    seed = 153100 + WAYS.index(way)

    async def use(client: Client) -> None:
        arguments = {"prompt": "a cat [slow:step:0.2]", "seed": seed, "num_inference_steps": 100}
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "draw", arguments)
            while server.count("step", seed) < 2:
                await anyio.sleep(0.05)
            group.cancel_scope.cancel()
        await client.list_tools()

    speak(server, way, use)
    until(lambda: server.generate("a dog", num_inference_steps=1).status_code == 200)
    seen = server.count("step", seed)
    assert seen < 60
    server.generate("a dog [slow:step:0.3]", num_inference_steps=2)
    assert server.count("step", seed) == seen


@pytest.mark.behaviour(153)
def test_what_is_too_large_to_be_shown_is_a_link(server: Server) -> None:
    result = call(server, "auto", "draw", prompt="a cat", size="1024x1024", n=4, seed=153200, output_format="jpeg")
    shown = sum(isinstance(each, ImageContent) for each in result.content)
    links = sum(isinstance(each, ResourceLink) for each in result.content)
    assert links == 4
    assert shown < 4


@pytest.mark.behaviour(153)
def test_a_picture_of_several_mebibytes_comes_in(server: Server) -> None:
    """The SDK alone takes bodies of 4 MiB."""
    noise = np.random.default_rng(0).integers(0, 256, (1400, 1400, 3), dtype=np.uint8)
    data = _as_png(noise)
    assert len(data) > 5_000_000
    image = base64.b64encode(data).decode()
    assert not call(server, "legacy", "edit", prompt="a cat", image=image, size="64x64").is_error


def _as_png(pixels: Any) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@pytest.mark.behaviour(153, 156)
def test_the_same_key_is_needed(start_server: StartServer) -> None:
    server = start_server("--api-key", "sesame")
    for way in WAYS:
        assert not call(server, way, "draw", prompt="a cat", key="sesame").is_error
    refused = server.request("POST", "/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    assert refused.status_code == 401
    assert refused.json()["error"]["data"]["code"] == "invalid_api_key"
    assert "API key is missing or wrong" in text_of(call(server, "stdio", "draw", prompt="a cat", key="wrong"))
    assert "sesame" not in server.log.read_text()


@pytest.mark.behaviour(153)
def test_without_a_server_stdio_says_so(start_server: StartServer) -> None:
    server = start_server()
    server.stop()
    assert "is `fluxserve serve` running?" in text_of(call(server, "stdio", "draw", prompt="a cat"))


@pytest.mark.behaviour(156)
def test_it_can_be_left_out(start_server: StartServer) -> None:
    server = start_server("--no-mcp")
    assert_error_code = server.request("POST", "/mcp", json={}).json()
    assert assert_error_code["error"]["data"]["code"] == "not_found"
    assert_error(server.request("POST", "/nothing", json={}), 404, "not_found")


@pytest.mark.fault(87)
@pytest.mark.parametrize(
    "inside",
    [
        b"{" + b",".join(b'"k%d":1' % number for number in range(300_000)) + b"}",
        b"[" + b"0," * 2_000_000 + b"0]",
        b"[" * 300_000,
        b"1" + b"0" * 5000,
    ],
)
def test_what_would_hold_up_everybody_is_refused(server: Server, inside: bytes) -> None:
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"a":' + inside + b"}}"
    headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    answer = server.request("POST", "/mcp", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["data"]["code"][:8]) == (400, "invalid_")


OPENING = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "a", "version": "1"}}


def say(server: Server, key: str, method: str, session: str | None = None, **params: Any) -> httpx.Response:
    headers = {"accept": "application/json, text/event-stream", "authorization": f"Bearer {key}"}
    headers |= {"mcp-session-id": session, "mcp-protocol-version": "2025-06-18"} if session else {}
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return server.request("POST", "/mcp", json=message, headers=headers)


@pytest.mark.fault(89)
def test_a_session_serves_its_own_client_and_nobody_holds_all(start_server: StartServer) -> None:
    server = start_server("--api-key", "mine", "--api-key", "theirs")

    def opened(key: str) -> str:
        answer = say(server, key, "initialize", **OPENING)
        assert answer.status_code == 200, answer.text
        return answer.headers["mcp-session-id"]

    mine, theirs = opened("mine"), opened("theirs")
    assert say(server, "mine", "tools/list", mine).status_code == 200
    for method, key in (("POST", "theirs"), ("DELETE", "theirs")):
        headers = {"authorization": f"Bearer {key}", "mcp-session-id": mine}
        answer = server.request(method, "/mcp", json={}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["data"]["code"]) == (404, "not_found")
    for _ in range(MOST_SESSIONS + 20):
        latest = opened("theirs")
    assert say(server, "mine", "tools/list", mine).status_code == 200
    assert say(server, "theirs", "tools/list", latest).status_code == 200
    assert say(server, "theirs", "tools/list", theirs).status_code == 404
    assert opened("mine") != mine
