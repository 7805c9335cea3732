"""A family that the package does not know is served by a row in the registry: planned, streamed, batched, edited."""

from __future__ import annotations

import base64
import inspect
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from openai import OpenAI
from PIL import Image
from safetensors.torch import save_file

from fluxserve import FluxPipeline
from fluxserve.models import registry
from fluxserve.request import GenerationRequest
from fluxserve.weights.describe import describe
from fluxserve.weights.synthetic.write import write_model
from tests import toy_family
from tests.server import running
from tests.server.running import EDITS, Server
from tests.toy_worker import ROW


@pytest.fixture(scope="module", autouse=True)
def row() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.ROWS, "toy", ROW)
        yield


@pytest.fixture(scope="module")
def folder(row: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "model"
    write_model(folder, "tiny", "toy", "diffusers", seed=1)
    return folder


def load(folder: Path, **options: object) -> FluxPipeline:
    return FluxPipeline.from_pretrained(str(folder), device="cpu", dtype="float32", **options)  # type: ignore[arg-type]


def request(prompt: str = "a cat", **changes: object) -> GenerationRequest:
    return GenerationRequest(prompt, 64, 96, (5, 6), 4, None, 24, **changes)  # type: ignore[arg-type]


def png(colour: str, size: tuple[int, int] = (64, 96), alpha: int = 255) -> bytes:
    picture = Image.new("RGBA", size, colour)
    picture.putalpha(alpha)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_it_is_small() -> None:
    assert len(inspect.getsource(toy_family).splitlines()) < 150


def test_it_is_found_and_described(folder: Path) -> None:
    assert "toy denoiser, toy" in str(describe(folder))
    assert "a whole model" in str(describe(folder))


def test_streaming_draws_what_a_resident_model_draws(folder: Path) -> None:
    resident, streamed = load(folder, offload="none"), load(folder, offload="stream")
    assert not resident.plan.streamed
    assert len(streamed.plan.streamed) == toy_family.DEPTH
    assert [image.data for image in streamed.run(request())] == [image.data for image in resident.run(request())]


def test_prompts_seeds_and_lengths_tell(folder: Path) -> None:
    pipeline = load(folder)
    pictures = {pipeline.run(request(prompt))[0].data for prompt in ("a cat", "a dog", "a cat" * 9)}
    assert len(pictures) == 3
    assert pipeline.text_usage(pipeline.begin(request("a cat" * 9))) == (24, 45)
    assert len({image.data for image in pipeline.run(request())}) == 2


def test_a_batch_draws_what_single_steps_draw(folder: Path) -> None:
    pipeline = load(folder)
    together, apart = pipeline.begin(request()), pipeline.begin(request())
    while not together[0].done:
        pipeline.step(together)
        for sample in apart:
            pipeline.step([sample])
    for one, other in zip(together, apart, strict=True):
        assert torch.allclose(one.latents, other.latents, atol=1e-5)


def test_rows_are_remembered_whatever_the_prompt(folder: Path) -> None:
    """They depend on time alone where a family has no pooled vector."""
    pipeline = load(folder)
    (one, _), (other, _) = pipeline.begin(request("a cat")), pipeline.begin(request("a dog"))
    assert one.cond.rows is other.cond.rows


def test_previews_and_edits(folder: Path) -> None:
    pipeline = load(folder)
    (sample, _) = pipeline.begin(request(image=png("red"), mask=png("red"), strength=0.5))
    assert sample.steps == 2
    pipeline.step([sample])
    assert pipeline.preview(sample).shape == (96, 64, 3)
    pipeline.step([sample])
    assert np.all(pipeline.decode(sample) == (255, 0, 0))  # an opaque mask keeps all


def test_a_lora_changes_it(folder: Path, tmp_path: Path) -> None:
    width = toy_family.WIDTH
    save_file(
        {"floors.0.mix.lora_A.weight": torch.ones(1, width), "floors.0.mix.lora_B.weight": torch.ones(width, 1)},
        tmp_path / "style.safetensors",
    )
    plain, changed = load(folder), load(folder, loras=(str(tmp_path / "style.safetensors"),))
    assert plain.run(request())[0].data != changed.run(request())[0].data


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = running.start([str(folder), "--device", "cpu"], tmp_path_factory.mktemp("server"), "tests.toy_worker")
    yield server.wait_ready()
    server.stop()


def test_it_is_served(server: Server, folder: Path) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    result = client.images.generate(
        model="plaything", prompt="a cat", n=2, size="64x96", response_format="b64_json", extra_body={"seed": 5}
    )
    assert result.data is not None
    drawn = [base64.b64decode(image.b64_json or "") for image in result.data]
    assert len(set(drawn)) == 2
    assert Image.open(io.BytesIO(drawn[0])).size == (64, 96)
    assert server.get("/v1/models").json()["data"][0]["id"] == folder.name
    edited = server.send_form(EDITS, {"prompt": "a dog"}, [("image", png("blue"))])
    assert edited.status_code == 200


def test_previews_are_streamed(server: Server) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    events = list(client.images.generate(prompt="a cat", size="64x96", stream=True, partial_images=2))
    assert [event.type for event in events].count("image_generation.partial_image") == 2
    assert events[-1].type == "image_generation.completed"
