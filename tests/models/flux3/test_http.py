"""FLUX.3 image klein behind the real server, asked by the official client."""

from __future__ import annotations

import base64
import io
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from openai import APITimeoutError, BadRequestError, OpenAI
from PIL import Image
from safetensors.torch import save_file

from tests.conftest import MakeCheckpoint
from tests.models.sketches import as_png, sketch
from tests.server import running
from tests.server.running import REAL_WORKER, Server, until, worker_of

LICENCE = "FLUX Kommunity License v1.0"
A, B, C = (as_png(sketch(*size, seed=seed)) for seed, size in enumerate(((100, 75), (80, 112), (64, 64))))


@pytest.fixture(scope="module", params=["flux3-klein", "flux3-klein-base"])
def server(
    request: pytest.FixtureRequest, tiny_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    loras, generator = tmp_path_factory.mktemp("loras"), torch.Generator().manual_seed(1)
    module = "diffusion_model.single_blocks.1.q_proj"
    ways = {way: torch.randn(*shape, generator=generator) for way, shape in (("A", (2, 64)), ("B", (64, 2)))}
    save_file({f"{module}.lora_{way}.weight": tensor for way, tensor in ways.items()}, loras / "style.safetensors")
    flags = [str(tiny_checkpoint(request.param)), "--device", "cpu", "--dtype", "float32", "--lora-dir", str(loras)]
    server = running.start(flags, tmp_path_factory.mktemp(request.param), REAL_WORKER).wait_ready()
    yield server
    assert server.stop() == 0, server.log.read_text()


@pytest.fixture(scope="module")
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def pixels(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"), dtype=int)


def drawn(answer: Any) -> np.ndarray:
    return pixels(answer.data[0].b64_json)


def asked(**extra: Any) -> dict[str, Any]:
    own = {"seed": 5, "steps": 3, **extra}
    return {"prompt": "un café, 雪の山の家", "response_format": "b64_json", "extra_body": own}


@pytest.mark.behaviour(179)
def test_pictures_are_drawn_by_seed_and_negative_prompt(client: OpenAI, server: Server) -> None:
    base = "base" in server.folder.name
    sent = {"model": "flux-3-image-klein-base" if base else "flux-3-image-klein", "size": "64x96"}
    plain = drawn(client.images.generate(**asked(), **sent))
    assert plain.shape == (96, 64, 3)
    assert np.array_equal(drawn(client.images.generate(**asked(), **sent)), plain)
    assert not np.array_equal(drawn(client.images.generate(**asked(seed=6), **sent)), plain)
    longer = asked(negative_prompt="blurred, grey, of another length " * 4)  # base is drawn against it
    assert np.array_equal(drawn(client.images.generate(**longer, **sent)), plain) != base


@pytest.mark.behaviour(180)
def test_edits_are_drawn_by_one_and_several_pictures(client: OpenAI) -> None:
    pictures = [[A], [B], [A, B], [B, A], [A, B, C]]
    edits = [drawn(client.images.edit(image=images, size="96x64", **asked())) for images in pictures]
    for i, one in enumerate(edits):
        assert one.shape == (64, 96, 3)
        for another in edits[:i]:
            assert np.abs(one - another).mean() > 0.02, "levels; equal requests give equal pictures"
    with pytest.raises(BadRequestError) as refused:
        client.images.edit(image=[A] * 11, **asked())
    assert (refused.value.param, refused.value.code) == ("image", "too_many_images")


@pytest.mark.behaviour(181)
def test_previews_come_before_the_picture(client: OpenAI) -> None:
    events = list(client.images.edit(image=A, stream=True, partial_images=2, **asked()))
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image"] * 2 + ["completed"]
    seen = [pixels(event.b64_json) for event in events]
    assert np.abs(seen[0] - seen[-1]).max() > 2
    assert np.array_equal(seen[-1], drawn(client.images.edit(image=A, **asked())))


@pytest.mark.behaviour(185)
def test_the_answer_has_the_size_of_the_one_picture(client: OpenAI, server: Server) -> None:
    answer = client.images.edit(image=A, **asked())
    assert (answer.size, drawn(answer).shape) == ("100x75", (75, 100, 3))
    events = list(client.images.edit(image=A, stream=True, partial_images=1, **asked()))
    assert [(event.size, pixels(event.b64_json).shape) for event in events] == [("100x75", (75, 100, 3))] * 2
    fields = {"prompt": "un café, 雪の山の家", "seed": "5", "steps": "3", "response_format": "b64_json"}
    job = server.send_form(running.EDITS, fields, [("image", A)], {"Prefer": "respond-async"})
    until(lambda: server.get(job.headers["location"]).json()["status"] == "completed")
    later = server.get(job.headers["location"]).json()["result"]
    assert (later["size"], later["data"][0]["b64_json"]) == ("100x75", answer.data[0].b64_json)
    for images, size, expected in (([A, B], "auto", "96x64"), (A, "96x64", "96x64")):
        assert client.images.edit(image=images, size=size, **asked()).size == expected


@pytest.mark.behaviour(182)
def test_a_lora_acts(client: OpenAI) -> None:
    plain = drawn(client.images.generate(size="64x64", **asked()))
    assert np.abs(drawn(client.images.generate(size="64x64", **asked(loras=["style"]))) - plain).max() > 2


@pytest.mark.behaviour(183)
def test_the_models_list_tells_its_licence_and_what_it_serves(client: OpenAI, server: Server) -> None:
    (model,) = (model.model_dump() for model in client.models.list().data)
    base = "base" in server.folder.name
    assert model["licence"] == LICENCE
    assert model["capabilities"] == ["generations", "edits", "masks", "variations", "references", "stream"]
    assert model["defaults"]["steps"]["medium"] == (50 if base else 16)
    assert model["defaults"]["true_cfg_scale"] == (3.5 if base else 1)
    assert LICENCE in server.log.read_text()


@pytest.mark.behaviour(184)
def test_a_job_whose_client_leaves_is_stopped(client: OpenAI, server: Server) -> None:
    with pytest.raises(APITimeoutError):
        client.with_options(timeout=0.5).images.edit(image=[A, B], n=10, **asked(steps=200))
    until(lambda: "fluxserve_requests_in_flight 0.0" in server.get("/metrics").text, 60)  # of 10 x 200 steps
    assert drawn(client.images.generate(size="64x64", **asked())).shape == (64, 64, 3)


@pytest.mark.fault(152)
def test_a_worker_that_dies_in_mid_job_costs_no_request(client: OpenAI, server: Server) -> None:
    expected = drawn(client.images.edit(image=[A, B], **asked(steps=12)))
    events = iter(client.images.edit(image=[A, B], stream=True, partial_images=3, **asked(steps=12)))
    assert next(events).type == "image_edit.partial_image"
    os.kill(worker_of(server), signal.SIGKILL)
    *_, last = events
    assert np.array_equal(pixels(last.b64_json), expected)
