"""Requests as widely used programs send them, and the parts of the answer that each of them reads.

Shapes read in the programs' sources: Open WebUI, LibreChat, LangChain, LiteLLM, n8n, Dify.
"""

from __future__ import annotations

import base64

import pytest

from tests.server.running import EDITS, GENERATIONS, Server, png


@pytest.mark.behaviour(64)
def test_open_webui(server: Server) -> None:
    body = {"model": "default", "prompt": "a cat", "n": 1, "size": "512x512", "response_format": "b64_json", "steps": 4}
    answer = server.request(
        "POST", f"{GENERATIONS}?api-version=2024-02-01", json=body, headers={"authorization": "Bearer "[:-1]}
    )
    item = answer.json()["data"][0]
    assert "url" not in item, "it would be taken first"
    base64.b64decode(item["b64_json"], validate=True)
    url = server.generate(model="default", n=1, size="512x512").json()["data"][0]["url"]
    fetched = server.get(url, headers={"authorization": "Bearer its-own-key"})
    assert fetched.headers["content-type"].split("/")[0] == "image"


@pytest.mark.behaviour(64)
def test_librechat_gpt_image(server: Server) -> None:
    body = {"model": "gpt-image-1", "quality": "high", "size": "1024x1024", "background": "auto", "n": 1}
    answer = server.generate(**body)
    assert answer.json()["data"][0].keys() == {"b64_json", "seed"}
    fields = {"model": "gpt-image-1", "prompt": "a cat", "quality": "auto", "size": "auto", "n": "1"}
    edited = server.send_form(EDITS, fields, [("image[]", png())])
    assert edited.json()["data"][0].keys() == {"b64_json", "seed"}


@pytest.mark.behaviour(64)
def test_librechat_dall_e(server: Server) -> None:
    body = {"model": "dall-e-3", "quality": "standard", "style": "vivid", "size": "1024x1792", "n": 1}
    answer = server.generate(**body)
    assert answer.json()["data"][0]["url"].endswith(".png")
    assert answer.headers["x-fluxserve-warning"] == "ignored:style"


@pytest.mark.behaviour(64)
def test_langchain(server: Server) -> None:
    answer = server.generate(model="dall-e-2", n=1, size="1024x1024", quality="standard")
    assert isinstance(answer.json()["data"][0]["url"], str)


@pytest.mark.behaviour(64)
def test_litellm(server: Server) -> None:
    answer = server.generate(model="default", n=1, size="256x256", user="someone").json()
    assert {"created", "data", "usage"} <= answer.keys()
    assert answer["usage"]["total_tokens"] == answer["usage"]["input_tokens"] + answer["usage"]["output_tokens"]
    mask = png(color=(0, 0, 0, 0), mode="RGBA")
    assert server.send_form(EDITS, {"prompt": "a cat"}, [("image[]", png()), ("mask", mask)]).status_code == 200


@pytest.mark.behaviour(64)
def test_n8n_and_dify(server: Server) -> None:
    n8n = server.generate(model="dall-e-2", n=1, size="256x256", response_format="b64_json", quality="standard").json()
    assert base64.b64decode(n8n["data"][0]["b64_json"], validate=True)[1:4] == b"PNG"
    body = {"model": "gpt-image-2", "quality": "low", "moderation": "low", "output_format": "jpeg", "n": 1}
    dify = server.generate(**body, size="1024x1024", background="opaque").json()
    assert base64.b64decode(dify["data"][0]["b64_json"], validate=True)[:2] == b"\xff\xd8"
    assert (dify["output_format"], dify["quality"]) == ("jpeg", "low")
