"""The Responses API's image_generation, by OpenAI's own client."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import openai
import pytest

from tests.fake_pipeline import expected_pixels
from tests.server.conftest import StartServer
from tests.server.doors.test_webui import bare
from tests.server.running import Server, assert_error, picture, png

TOOL: Any = {"type": "image_generation"}
PATH = "/v1/responses"


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.behaviour(158)
def test_drawing(server: Server) -> None:
    tool = {**TOOL, "size": "128x64", "quality": "low", "output_format": "png"}
    answer = client_of(server).responses.create(model="default", input="a red apple", tools=[tool])
    call: Any = answer.output[0]
    assert (call.type, call.status, call.size, call.quality) == ("image_generation_call", "completed", "128x64", "low")
    drawn = picture(base64.b64decode(call.result))
    assert np.array_equal(drawn, expected_pixels(call.seed, 128, 64))
    assert answer.output_text == ""
    assert (answer.status, answer.model) == ("completed", "fluxserve/fake")


@pytest.mark.behaviour(158)
def test_editing_the_last_message(server: Server) -> None:
    mask = "data:image/png;base64," + bare(png(color=(0, 0, 0, 0), mode="RGBA"))
    content = [
        {"type": "input_text", "text": "a green apple"},
        {"type": "input_image", "image_url": "data:image/png;base64," + bare(png())},
    ]
    messages: Any = [{"role": "user", "content": "something else"}, {"role": "user", "content": content}]
    tool = {**TOOL, "input_image_mask": {"image_url": mask}}
    answer = client_of(server).responses.create(
        model="gpt-image-2", input=messages, tools=[tool], instructions="be kind"
    )
    call: Any = answer.output[0]
    assert picture(base64.b64decode(call.result)).shape == (64, 64, 3)
    body = {"input": "a cat", "tools": [TOOL], "instructions": "be kind"}
    assert server.request("POST", PATH, json=body).headers["x-fluxserve-warning"] == "ignored:instructions"


@pytest.mark.behaviour(158)
@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"input": "hello"}, "tools", "unsupported_value"),
        ({"input": "hello", "tools": [{"type": "web_search"}]}, "tools", "unsupported_value"),
        ({"input": "hello", "tools": [TOOL, {"type": "web_search"}]}, "tools", "unsupported_value"),
        ({"input": "hello", "tools": "image_generation"}, "tools", "unsupported_value"),
        ({"input": "hello", "tools": [TOOL], "stream": True}, "stream", "unsupported_value"),
        ({"input": "hello", "tools": [TOOL], "previous_response_id": "resp_1"}, "previous_response_id", None),
        ({"tools": [TOOL]}, "input", "invalid_type"),
        ({"input": [], "tools": [TOOL]}, "prompt", "invalid_value"),
        ({"input": [{"content": [{"type": "input_file"}]}], "tools": [TOOL]}, "input", "invalid_type"),
        ({"input": [{"content": [{"type": "input_text"}]}], "tools": [TOOL]}, "input", "invalid_type"),
        ({"input": "a cat", "tools": [{**TOOL, "size": "7x7"}]}, "size", "invalid_size"),
        ({"input": "a cat", "tools": [{**TOOL, "background": "transparent"}]}, "background", "unsupported_value"),
        (
            {"input": [{"content": [{"type": "input_image", "image_url": "http://evil.example/"}]}], "tools": [TOOL]},
            "images",
            "unsupported_value",
        ),
    ],
)
def test_anything_else_is_refused(server: Server, body: dict[str, Any], param: str, code: str | None) -> None:
    answer = server.request("POST", PATH, json=body)
    error = assert_error(answer, 400, code or "unsupported_value", param)
    if param in ("tools", "stream"):
        assert "fluxserve only draws" in error["message"]


@pytest.mark.behaviour(158)
def test_it_can_be_left_out(start_server: StartServer) -> None:
    server = start_server("--no-responses")
    assert_error(server.request("POST", PATH, json={"input": "a cat", "tools": [TOOL]}), 404, "not_found")
