"""The Responses API's image_generation, by OpenAI's own client."""

from __future__ import annotations

import base64
import json
import subprocess
from typing import Any

import numpy as np
import openai
import pytest

from tests.clients.environments import python_with_openai
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
        ({"input": "hello", "tools": [TOOL], "stream": "maybe"}, "stream", "invalid_type"),
        (
            {"input": "hello", "tools": [{**TOOL, "partial_images": 9}], "stream": True},
            "partial_images",
            "invalid_value",
        ),
        ({"input": "hello", "tools": [TOOL], "background": True}, "background", "unsupported_value"),
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
    if param == "tools":
        assert "fluxserve only draws" in error["message"]


@pytest.mark.behaviour(159)
def test_a_stream(server: Server) -> None:
    """Of two pictures, each with two previews."""
    tool = {**TOOL, "n": 2, "partial_images": 2, "size": "64x64"}
    prompt = "a red apple [slow:step:0.2]"
    stream = client_of(server).responses.create(model="default", input=prompt, tools=[tool], stream=True)
    events: list[Any] = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    call = "image_generation_call"
    assert kinds[:6] == ["created", "in_progress", *["output_item.added", f"{call}.in_progress"] * 2]
    assert kinds[-1] == "completed"
    response = events[-1].response
    for index, item in enumerate(response.output):
        own = [event for event in events if getattr(event, "item_id", "") == item.id]
        kinds = [event.type.removeprefix(f"response.{call}.") for event in own]
        assert kinds == ["in_progress", "generating", "partial_image", "partial_image", "completed"]
        assert {event.output_index for event in own} == {index}
        assert [event.partial_image_index for event in own[2:4]] == [0, 1]
        assert picture(base64.b64decode(own[2].partial_image_b64)).shape == (64, 64, 3)
        (done,) = [
            event.item for event in events if event.type == "response.output_item.done" and event.item.id == item.id
        ]
        assert done == item
        assert np.array_equal(picture(base64.b64decode(item.result)), expected_pixels(item.seed, 64, 64))
    assert {events[0].response.id, events[1].response.id} == {response.id}
    assert (events[0].response.status, response.status) == ("in_progress", "completed")


@pytest.mark.behaviour(159)
def test_a_stream_that_fails_says_so(server: Server) -> None:
    stream = client_of(server).responses.create(model="default", input="a cat [nan:vae]", tools=[TOOL], stream=True)
    *_, last = list(stream)
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert last.response.error is not None
    assert last.response.error.message.startswith("the picture is not finite (")


_STRICT = """
import sys
from openai import OpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

events = TypeAdapter(ResponseStreamEvent)
client = OpenAI(base_url=sys.argv[1], api_key="none")
asked = {"model": "default", "tools": [{"type": "image_generation", "partial_images": 1, "size": "64x64"}]}
for prompt in ("a red apple [slow:step:0.2]", "a cat [nan:vae]"):
    for event in client.responses.create(input=prompt, stream=True, **asked):
        assert type(events.validate_python(event.to_dict(), strict=True)) is type(event)
        print(event.type)
with client.responses.stream(input="a red apple", **asked) as stream:
    seen = list(stream)
    assert stream.get_final_response().output[0].result
client.responses.create(input="a red apple", **asked).output[0].model_validate
"""


@pytest.mark.behaviour(159)
def test_the_events_are_as_openai_types_them(server: Server) -> None:
    """openai-python 3.57's types, strictly, and its helper that gathers a response from them."""
    python = python_with_openai("3.57.0")
    run = [str(python), "-c", _STRICT, f"{server.url}/v1"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    kinds = set(done.stdout.split())
    call = "response.image_generation_call"
    assert {f"{call}.{name}" for name in ("in_progress", "generating", "partial_image", "completed")} < kinds
    assert {"response.created", "response.completed", "response.failed"} < kinds


@pytest.mark.behaviour(159)
def test_a_stream_is_repeated_under_its_key(server: Server) -> None:
    """The same picture, without previews: it is not drawn again."""
    body = {"input": "a red apple", "tools": [TOOL], "stream": True}
    first, again = (
        server.request("POST", PATH, json=body, headers={"idempotency-key": "response-159"}) for _ in range(2)
    )
    assert again.headers["idempotent-replayed"] == "true"
    results = [_completed(answer.text)["output"][0]["result"] for answer in (first, again)]
    assert results[0] == results[1]


def _completed(stream: str) -> dict[str, Any]:
    """The response of the last event."""
    last = stream.strip().rpartition("data: ")[2]
    response: dict[str, Any] = json.loads(last)["response"]
    return response


@pytest.mark.behaviour(158)
def test_it_can_be_left_out(start_server: StartServer) -> None:
    server = start_server("--no-responses")
    assert_error(server.request("POST", PATH, json={"input": "a cat", "tools": [TOOL]}), 404, "not_found")
