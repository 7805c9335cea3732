"""Hugging Face's own client at /hf, and what it is told."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from tests.fake_pipeline import expected_pixels
from tests.server.conftest import StartServer
from tests.server.running import Server, echo, picture, png


def client_of(server: Server, key: str | None = None) -> InferenceClient:
    return InferenceClient(base_url=f"{server.url}/hf", api_key=key or "none")


@pytest.mark.behaviour(154)
def test_text_to_image(server: Server, echo_server: Server) -> None:
    image = client_of(server).text_to_image("a cat", width=64, height=64, seed=154001, num_inference_steps=2)
    assert np.array_equal(np.asarray(image.convert("RGB")), expected_pixels(154001, 64, 64))
    drawn = client_of(echo_server).text_to_image(
        "a cat", negative_prompt="a dog", guidance_scale=2.5, seed=7, extra_body={"true_cfg_scale": 2}
    )
    request = echo({"b64_json": _base64(drawn)})
    assert (request["prompt"], request["negative_prompt"]) == ("a cat", "a dog")
    assert (request["guidance_scale"], request["true_cfg_scale"]) == (2.5, 2)


def _base64(image: Image.Image) -> str:
    from PIL import PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("request", str(image.info["request"]))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.behaviour(154)
def test_image_to_image_with_parameters_and_without(server: Server) -> None:
    client = client_of(server)
    edited = client.image_to_image(png(128, 64), prompt="a dog", seed=154002, num_inference_steps=2)
    assert np.array_equal(np.asarray(edited.convert("RGB")), expected_pixels(154002, *edited.size))
    assert edited.width > edited.height
    varied = client.image_to_image(png())
    assert varied.size == (64, 64)
    small = client.image_to_image(png(), prompt="a dog", target_size={"width": 100, "height": 70})
    assert small.size == (96, 64)


@pytest.mark.behaviour(154, 157)
def test_what_is_rounded_and_ignored_is_told(server: Server) -> None:
    body = {"inputs": "a cat", "parameters": {"width": 1000, "height": 72, "scheduler": "DDIM", "guidance_scale": 7}}
    answer = server.request("POST", "/hf", json=body)
    assert answer.headers["content-type"] == "image/png"
    assert picture(answer.content).shape == (64, 1008, 3) or picture(answer.content).shape == (80, 1008, 3)
    assert answer.headers["x-fluxserve-warning"] == "rounded:size, ignored:scheduler, ignored:guidance_scale"
    wanted = server.request("POST", "/hf", json={"inputs": "a cat"}, headers={"accept": "image/jpeg"})
    assert wanted.headers["content-type"] == "image/jpeg"


@pytest.mark.behaviour(156, 157)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "inputs must be a prompt"),
        ({"inputs": "a cat", "parameters": 7}, "parameters must be an object"),
        ({"inputs": "a cat", "parameters": {"num_inference_steps": 900}}, "an integer from 1 to 200, got 900"),
        ({"inputs": "a cat", "parameters": {"width": 64}}, "height is missing"),
        ({"inputs": "a cat", "parameters": {"n": 2, "width": "x", "height": 64}}, "width must be an integer"),
        ({"inputs": "iVBORw0KGgoAAAA", "parameters": {"prompt": "x"}}, "PNG, JPEG or WebP"),
    ],
)
def test_refusals_have_its_shape_and_our_words(server: Server, body: dict[str, Any], words: str) -> None:
    answer = server.request("POST", "/hf", json=body)
    assert answer.status_code == 400
    assert answer.json().keys() == {"error", "error_type"}
    assert words in answer.json()["error"]


@pytest.mark.behaviour(154, 156)
def test_keys_and_the_option(start_server: StartServer) -> None:
    server = start_server("--api-key", "sesame")
    assert client_of(server, "sesame").text_to_image("a cat").size == (64, 64)
    with pytest.raises(HfHubHTTPError, match="the API key is missing or wrong"):
        client_of(server, "wrong").text_to_image("a cat")
    closed = start_server("--no-hf")
    assert closed.request("POST", "/hf", json={"inputs": "a cat"}).status_code == 404


@pytest.mark.behaviour(154)
def test_the_program_of_the_page_runs(server: Server, tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "doors.md").read_text()
    program = page.partition("```python\n")[2].partition("```")[0].replace("http://localhost:1234", server.url)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=60)
    assert picture((tmp_path / "apple.png").read_bytes()).shape == (512, 512, 3)
    assert (tmp_path / "green.png").exists()


@pytest.mark.fault(88)
@pytest.mark.parametrize("target", [5, [64, 64], "64x64"])
def test_a_target_size_that_is_none_is_named(server: Server, target: object) -> None:
    sent = {"inputs": base64.b64encode(png()).decode(), "parameters": {"prompt": "a", "target_size": target}}
    refused = server.request("POST", "/hf", json=sent)
    assert (refused.status_code, refused.json()["error_type"]) == (400, "invalid_type")
