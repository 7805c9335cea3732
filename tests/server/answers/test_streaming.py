"""Server-sent events: which, in which order, what they hold, and how a stream ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.fake_pipeline import expected_pixels
from tests.server.conftest import StartServer
from tests.server.running import EDITS, GENERATIONS, Server, assert_error, kill_worker, picture, png


def stream(server: Server, prompt: str = "a cat", **fields: Any) -> list[str]:
    """The blocks of a stream: events and comments."""
    response = server.generate(prompt, stream=True, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-cache", "no")
    assert response.text.endswith("\n\n")
    return response.text.removesuffix("\n\n").split("\n\n")


def events(blocks: list[str]) -> Iterator[dict[str, Any]]:
    """The events among them; each says its type twice."""
    for block in blocks:
        if not block.startswith(":"):
            name, data = block.split("\n")
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            yield event


@pytest.mark.behaviour(31, 34)
@pytest.mark.parametrize("previews", [0, 1, 2, 3])
def test_previews_come_in_order_and_the_picture_last(server: Server, previews: int) -> None:
    told = list(events(stream(server, partial_images=previews, seed=3100, size="96x64")))
    assert [event["type"] for event in told] == ["image_generation.partial_image"] * previews + [
        "image_generation.completed"
    ]
    assert [event["partial_image_index"] for event in told[:-1]] == list(range(previews))
    for event in told:
        assert (event["size"], event["quality"], event["background"], event["output_format"]) == (
            "96x64",
            "medium",
            "opaque",
            "png",
        )
        assert isinstance(event["created_at"], int)
        assert picture(event["b64_json"]).shape == (64, 96, 3)
    done = told[-1]
    assert (done["image_index"], done["seed"], done["usage"]["output_tokens"], done["timings"]["steps"]) == (
        0,
        3100,
        24,
        4,
    )
    assert np.array_equal(picture(done["b64_json"]), expected_pixels(3100, 96, 64))


def test_few_steps_give_fewer_previews(server: Server) -> None:
    kinds = [event["type"] for event in events(stream(server, partial_images=3, steps=2))]
    assert kinds == ["image_generation.partial_image", "image_generation.completed"]


@pytest.mark.behaviour(32)
def test_each_picture_of_two_is_told_apart(server: Server) -> None:
    told = list(events(stream(server, n=2, seed=3200)))
    assert {(event["image_index"], event["seed"]) for event in told} == {(0, 3200), (1, 3201)}
    assert {event["usage"]["output_tokens"] for event in told} == {16}


@pytest.mark.behaviour(33)
def test_edits_have_their_own_event_names(server: Server) -> None:
    fields = {"prompt": "a cat", "stream": "true", "partial_images": "1"}
    response = server.send_form(EDITS, fields, [("image", png())])
    kinds = [event["type"] for event in events(response.text.removesuffix("\n\n").split("\n\n"))]
    assert kinds == ["image_edit.partial_image", "image_edit.completed"]


def test_progress_is_told_in_comments(server: Server) -> None:
    blocks = stream(server, "a cat [slow:step:0.3]")
    comments = [block for block in blocks if block.startswith(":")]
    assert comments
    assert all(comment.startswith(": progress image=0 step=") for comment in comments)


@pytest.mark.behaviour(35)
def test_a_failure_before_the_first_picture_ends_the_stream_with_an_error(server: Server) -> None:
    told = list(events(stream(server, "a cat [nan:vae]")))
    assert told == [
        {
            "type": "error",
            "error": {
                "message": "the picture is not finite",
                "type": "server_error",
                "param": None,
                "code": "non_finite_output",
            },
        }
    ]


@pytest.mark.behaviour(35)
def test_a_failure_after_the_first_picture_ends_the_stream_with_an_error(start_server: StartServer) -> None:
    server = start_server("--max-attempts", "1")
    seen: list[str] = []
    with server.http.stream(
        "POST", GENERATIONS, json={"prompt": "a [slow:step:0.2]", "n": 2, "stream": True}
    ) as response:
        for line in response.iter_lines():
            if line.startswith("event: "):
                seen.append(line.removeprefix("event: "))
                if seen == ["image_generation.completed"]:
                    kill_worker(server)
    assert seen == ["image_generation.completed", "error"]


@pytest.mark.behaviour(36)
def test_what_can_be_refused_is_refused_before_the_stream(server: Server, start_server: StartServer) -> None:
    assert_error(server.generate(stream=True, n=0), 400, "invalid_value", "n")
    assert_error(server.generate(stream=True, model="sdxl"), 404, "model_not_found", "model")
    guarded = start_server("--api-key", "secret")
    assert_error(guarded.generate(stream=True), 401, "invalid_api_key")


@pytest.mark.behaviour(37)
def test_a_reader_that_leaves_stops_its_job(server: Server) -> None:
    fields = {"prompt": "a [slow:step:0.1]", "steps": 100, "seed": 3700, "stream": True}
    with server.http.stream("POST", GENERATIONS, json=fields) as response:
        assert next(response.iter_lines()).startswith(": progress")
    assert server.generate(seed=3701).status_code == 200  # waits for the first job's last step
    steps = server.count("step", 3700)
    assert steps < 20
    assert server.generate(seed=3702).status_code == 200
    assert server.count("step", 3700) == steps


def test_a_cut_prompt_is_told_with_the_picture(server: Server) -> None:
    [event] = events(stream(server, " ".join(["word"] * 80)))
    assert event["warnings"] == ["truncated:prompt=80/256"]
