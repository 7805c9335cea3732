"""The whole way with a real model: tiny random weights behind the real worker, over HTTP. Its pictures are noise."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from fluxserve import FluxPipeline
from fluxserve.request import MaskMode
from tests.conftest import MakeCheckpoint
from tests.fake_pipeline import Pixels
from tests.server import running
from tests.server.running import EDITS, VARIATIONS, Server, picture, png


@pytest.fixture(scope="module")
def server(tiny_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = [str(tiny_checkpoint()), "--dtype", "float32"]
    server = running.start(flags, tmp_path_factory.mktemp("real"), running.REAL_WORKER).wait_ready()
    yield server
    assert server.stop() == 0, server.log.read_text()


def files(server: Server, **fields: object) -> list[str]:
    """The pictures of one request, as base64."""
    body = server.generate("a red apple", response_format="b64_json", size="96x64", steps=2, **fields).json()
    return [item["b64_json"] for item in body["data"]]


@pytest.mark.behaviour(3)
def test_a_seed_is_a_picture(server: Server) -> None:
    for seed in (7, 0):
        assert files(server, seed=seed) == files(server, seed=seed)
    assert files(server, seed=7) != files(server, seed=8)
    assert files(server, seed=7) != files(server)


@pytest.mark.behaviour(4)
def test_three_pictures_are_three_single_ones(server: Server) -> None:
    assert files(server, seed=7, n=3) == [files(server, seed=seed)[0] for seed in (7, 8, 9)]


def test_a_picture_tells_how_it_was_drawn(server: Server) -> None:
    answer = server.generate("a red apple", response_format="file", seed=7, steps=2, size="64x64")
    told = Image.open(io.BytesIO(answer.content)).info
    assert (told["prompt"], told["seed"], told["steps"]) == ("a red apple", "7", "2")


def test_previews_are_real_predictions(server: Server) -> None:
    fields = {"stream": True, "partial_images": 2, "steps": 4, "size": "64x64", "seed": 7}
    text = server.generate("a red apple", **fields).text
    assert text.count("event: image_generation.partial_image") == 2
    assert text.count("event: image_generation.completed") == 1


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The default model."""
    server = running.start([], tmp_path_factory.mktemp("demo"), running.REAL_WORKER).wait_ready()
    yield server
    assert server.stop() == 0, server.log.read_text()


def test_previews_come_nearer_to_the_picture_and_the_first_comes_early(demo: Server) -> None:
    """The signal-to-noise ratio against the finished picture rises, and the first is there before 60 % of the time."""
    client = OpenAI(base_url=f"{demo.url}/v1", api_key="none")
    asked = {"prompt": "a red apple", "extra_body": {"seed": 7, "steps": 12}}
    client.images.generate(**asked)  # encodes the prompt
    started = time.monotonic()
    events = [
        (time.monotonic() - started, event) for event in client.images.generate(**asked, stream=True, partial_images=3)
    ]
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(event.b64_json))), float) for _, event in events]
    errors = [np.square(picture - pictures[-1]).mean() for picture in pictures[:-1]]
    assert len(errors) == 3
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] > 0
    assert events[0][0] < 0.6 * events[-1][0]


def edited(server: Server, image: bytes, mask: bytes | None = None, path: str = EDITS, **fields: str) -> Pixels:
    uploads = [("image", image), *([("mask", mask)] if mask else [])]
    common = {"response_format": "b64_json", "seed": "3", "steps": "4", "size": "64x64"}
    prompt = {"prompt": "a red apple"} if path == EDITS else {}
    answer = server.send_form(path, {**common, **prompt, **fields}, uploads)
    assert answer.status_code == 200, answer.text
    return picture(answer.json()["data"][0]["b64_json"]).astype(np.int16)


def half(left_alpha: int, right_alpha: int) -> bytes:
    """64 x 64, its halves more or less transparent."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, :32, 3], pixels[:, 32:, 3] = left_alpha, right_alpha
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.behaviour(24)
def test_a_mask_keeps_what_is_opaque(server: Server) -> None:
    original = picture(png(color=(200, 30, 30))).astype(np.int16)
    for mask, kept, painted in (
        (half(255, 0), np.s_[:, :28], np.s_[:, 36:]),
        (half(0, 255), np.s_[:, 36:], np.s_[:, :28]),
    ):
        change = np.abs(edited(server, png(color=(200, 30, 30)), mask) - original)
        assert change[kept].mean() < 2
        assert change[painted].mean() > 10
    own = np.abs(edited(server, half(255, 0)))
    assert own[:, :28].mean() < 2
    assert own[:, 36:].mean() > 10


@pytest.mark.behaviour(26)
def test_less_strength_stays_nearer(server: Server) -> None:
    original = picture(png()).astype(np.int16)
    near, far = (np.abs(edited(server, png(), strength=strength) - original).mean() for strength in ("0.25", "1"))
    assert near < far


@pytest.mark.behaviour(30)
def test_a_variation_keeps_no_pixel(server: Server) -> None:
    """Not even those that are opaque beside transparent ones."""
    assert np.abs(edited(server, half(255, 0), path=VARIATIONS))[:, :28].mean() > 10


def white_half() -> bytes:
    """What `half(255, 0)` asks for, in black and white."""
    buffer = io.BytesIO()
    Image.fromarray(np.repeat(np.uint8([[0, 255]]), 64, axis=0).repeat(32, axis=1)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(("mode", "repaint"), [("alpha", half(255, 0)), ("white", white_half())])
def test_the_same_edit_is_the_same_file_over_http_in_python_and_on_the_command_line(
    demo: Server, tmp_path: Path, mode: MaskMode, repaint: bytes
) -> None:
    image, mask = tmp_path / "red.png", tmp_path / "mask.png"
    image.write_bytes(png())
    mask.write_bytes(repaint)
    fields = {"prompt": "a red apple", "seed": "3", "steps": "2", "true_cfg_scale": "2", "negative_prompt": "a dog"}
    fields["mask_mode"] = mode
    uploads = [("image", image.read_bytes()), ("mask", mask.read_bytes())]
    served = demo.send_form(EDITS, fields | {"output_format": "webp", "response_format": "file"}, uploads).content
    options = {"num_inference_steps": 2, "true_cfg_scale": 2.0, "negative_prompt": "a dog", "output_format": "webp"}
    pictures: dict[str, Any] = {"image": image, "mask": mask, "mask_mode": mode}
    (drawn,) = FluxPipeline.from_pretrained().generate("a red apple", **pictures, seed=3, **options)
    command = ["generate", "a red apple", "-i", str(image), "--mask", str(mask), "--seed", "3", "--steps", "2"]
    command += ["--mask-mode", mode]
    command += ["--true-cfg-scale", "2", "--negative-prompt", "a dog", "--format", "webp", "-o", "-"]
    written = subprocess.run(
        [sys.executable, "-m", "fluxserve", *command], capture_output=True, timeout=300, check=True
    )
    assert served.startswith(b"RIFF")
    assert served == drawn.data == written.stdout
