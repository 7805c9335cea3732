"""The demo model draws what it is asked for; and it would not if something in the model were the wrong way round."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline as DiffusersPipeline
from openai import OpenAI
from PIL import Image

import fluxserve
from fluxserve import FluxPipeline
from fluxserve.config import Dtype
from fluxserve.models.companions import flux1_autoencoder as autoencoder
from fluxserve.models.parts import streams
from tests.demo.references import PROMPTS, named
from tests.server import running
from tests.server.running import Server

FOLDER = Path(fluxserve.__file__).parent / "demo" / "model"
NATIVE = 128
PACKAGE_BYTES = 40_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = running.start([], tmp_path_factory.mktemp("demo"), running.REAL_WORKER).wait_ready()
    yield server
    assert server.stop() == 0, server.log.read_text()


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    return FluxPipeline.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="module")
def exact() -> FluxPipeline:
    return FluxPipeline.from_pretrained("demo", device="cpu", dtype="float32")


def drawn(pipeline: FluxPipeline, prompt: str, width: int = NATIVE, height: int = NATIVE) -> Image.Image:
    (image,) = pipeline.generate(prompt, width=width, height=height, seed=0)
    return Image.open(io.BytesIO(image.data))


def right(pipeline: FluxPipeline) -> int:
    """Of the twelve prompts, how many give a picture of what they name."""
    return sum(named(drawn(pipeline, prompt)) == label for label, prompt in PROMPTS.items())


def psnr(a: Image.Image, b: Image.Image) -> float:
    error = np.square(np.asarray(a, float) - np.asarray(b, float)).mean()
    return float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("label", PROMPTS)
def test_a_client_gets_what_it_asks_for(server: Server, label: str) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    result = client.images.generate(prompt=PROMPTS[label], response_format="b64_json", extra_body={"seed": 0})
    assert result.data is not None
    picture = Image.open(io.BytesIO(base64.b64decode(result.data[0].b64_json or "")))
    assert picture.size == (256, 256)
    assert named(picture) == label


def test_all_twelve_are_right(pipeline: FluxPipeline) -> None:
    assert right(pipeline) == len(PROMPTS)


def swap_q_and_k(monkeypatch: pytest.MonkeyPatch, _: FluxPipeline) -> None:
    attention = streams.attention
    monkeypatch.setattr(streams, "attention", lambda q, k, v: attention(k, q, v))


def drop_the_latent_scale(monkeypatch: pytest.MonkeyPatch, _: FluxPipeline) -> None:
    monkeypatch.setattr(autoencoder, "SCALE_FACTOR", 1.0)


def reverse_the_schedule(monkeypatch: pytest.MonkeyPatch, pipeline: FluxPipeline) -> None:
    schedule = pipeline.variant.schedule
    backwards = replace(pipeline.variant, schedule=lambda *args: schedule(*args)[::-1])
    monkeypatch.setattr(pipeline, "variant", backwards)


@pytest.mark.parametrize("mutate", [swap_q_and_k, drop_the_latent_scale, reverse_the_schedule])
def test_they_would_not_be_with_a_mistake_in_the_model(
    pipeline: FluxPipeline, monkeypatch: pytest.MonkeyPatch, mutate: Callable[[pytest.MonkeyPatch, FluxPipeline], None]
) -> None:
    mutate(monkeypatch, pipeline)
    assert right(pipeline) < len(PROMPTS)


def test_diffusers_draws_the_same_picture(exact: FluxPipeline) -> None:
    theirs = DiffusersPipeline.from_pretrained(FOLDER, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        "a lion",
        width=NATIVE,
        height=NATIVE,
        num_inference_steps=exact.card.steps["medium"],
        guidance_scale=0.0,
        max_sequence_length=exact.card.max_sequence_length,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]
    ours = np.asarray(drawn(exact, "a lion"), int)
    assert np.abs(ours - np.rint(expected * 255).astype(int)).max() <= 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_float32(exact: FluxPipeline, dtype: Dtype) -> None:
    """float16 ends at 65504, and CLIP's memories write large numbers."""
    half = FluxPipeline.from_pretrained("demo", device="cpu", dtype=dtype)
    for prompt in ("a lion", "a red apple"):
        assert psnr(drawn(half, prompt), drawn(exact, prompt)) >= 30


@pytest.mark.parametrize(("width", "height"), [(256, 128), (128, 256), (1024, 1024), (320, 256)])
def test_other_sizes_keep_the_thing_whole(pipeline: FluxPipeline, width: int, height: int) -> None:
    """The square in the middle shows it; the rest is background."""
    picture = drawn(pipeline, "A red apple on a white background", width, height)
    assert picture.size == (width, height)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    assert named(picture.crop((left, top, left + side, top + side))) == "red apple"
    rim = np.asarray(picture, float)[:: height - 1]
    assert rim.mean() > 215


def test_what_it_does_not_know_gives_a_clean_picture(pipeline: FluxPipeline) -> None:
    """Its rim is nearly white, where noise would vary around gray."""
    picture = np.asarray(drawn(pipeline, "the quadratic formula explained by a lawyer"), float)
    rim = np.concatenate([picture[:4].reshape(-1, 3), picture[-4:].reshape(-1, 3)])
    assert rim.mean() > 215
    assert rim.std(axis=0).max() < 40


def test_the_folder_is_small_and_carries_its_notices() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < PACKAGE_BYTES
    notice = (FOLDER / "NOTICE").read_text()
    for source in ("Fluent Emoji", "emojibase-data", "WordNet", "all-MiniLM-L6-v2"):
        assert source in notice
    assert json.loads((FOLDER / "model_index.json").read_text())["_class_name"] == "FluxPipeline"
