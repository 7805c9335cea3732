"""Z-Image behind the real server, asked by the official client."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from tests.conftest import MakeCheckpoint
from tests.server import running
from tests.server.running import REAL_WORKER, Server, picture, png


@pytest.fixture(scope="module", params=["zimage-turbo", "zimage"])
def server(
    request: pytest.FixtureRequest, tiny_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    flags = [str(tiny_checkpoint(request.param)), "--device", "cpu", "--dtype", "float32"]
    server = running.start(flags, tmp_path_factory.mktemp(request.param), REAL_WORKER).wait_ready()
    yield server
    assert server.stop() == 0, server.log.read_text()


@pytest.fixture(scope="module")
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def drawn(answer: object) -> np.ndarray:
    return picture(answer.data[0].b64_json).astype(int)  # type: ignore[attr-defined]


@pytest.mark.behaviour(110, 111)
def test_prompts_of_every_script_and_negative_prompts(client: OpenAI, server: Server) -> None:
    base = "zimage-turbo" not in server.folder.name
    asked = {"model": "z-image" if base else "z-image-turbo", "size": "64x96", "response_format": "b64_json"}
    extra = {"seed": 5, "steps": 4}
    plain = drawn(client.images.generate(prompt="un café, 雪の山の家", extra_body=extra, **asked))
    assert plain.shape == (96, 64, 3)
    assert (drawn(client.images.generate(prompt="un café, 雪の山の家", extra_body=extra, **asked)) == plain).all()
    longer = {**extra, "negative_prompt": "blurred, grey, of another length " * 2}
    answer = client.images.with_raw_response.generate(prompt="un café, 雪の山の家", extra_body=longer, **asked)
    warned = answer.headers.get("x-fluxserve-warning", "")
    assert (drawn(answer.parse()) == plain).all() != base  # base is drawn against it, Turbo without guidance
    assert ("ignored:negative_prompt" in warned) != base


@pytest.mark.behaviour(110)
def test_previews_several_pictures_and_edits(client: OpenAI) -> None:
    asked = {"prompt": "a cat", "size": "64x64", "extra_body": {"seed": 5, "steps": 4}}
    events = list(client.images.generate(stream=True, partial_images=2, **asked))
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image"] * 2 + ["completed"]
    two = client.images.generate(n=2, response_format="b64_json", **asked)
    assert two.data is not None
    assert two.data[0].b64_json == events[-1].b64_json
    assert len({item.b64_json for item in two.data}) == 2
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (32, 0, 64, 64))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    edited = drawn(client.images.edit(image=png(), mask=buffer.getvalue(), response_format="b64_json", **asked))
    assert (edited[:, :32] == (200, 30, 30)).all()
    assert (edited[:, 32:] != (200, 30, 30)).any()


@pytest.mark.behaviour(110, 111)
def test_the_models_list_tells_licence_and_guidance(server: Server) -> None:
    (model,) = server.get("/v1/models").json()["data"]
    assert model["licence"] == "Apache-2.0"
    guided = "turbo" not in model["id"] and "turbo" not in server.folder.name
    assert model["defaults"]["true_cfg_scale"] == (6 if guided else 1)
