"""FLUX.1 Kontext draws by one picture as diffusers does; it and Krea are told from dev by class, name or option."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

from fluxserve import FluxPipeline
from fluxserve.completion import complete_request
from fluxserve.errors import CheckpointError, InvalidRequest
from fluxserve.input_images import read_inputs
from fluxserve.models.flux1.variants import VARIANTS
from tests.conftest import MakeCheckpoint
from tests.models.sketches import sketch
from tests.weights.stored_files import open_quietly


@pytest.fixture(scope="module")
def kontext(tiny_checkpoint: MakeCheckpoint) -> FluxPipeline:
    return FluxPipeline.from_pretrained(str(tiny_checkpoint("kontext")), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def theirs(tiny_checkpoint: MakeCheckpoint) -> FluxKontextPipeline:
    pipeline = FluxKontextPipeline.from_pretrained(tiny_checkpoint("kontext"), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    ("size", "width", "height", "cfg"), [((130, 70), 96, 64, 1.0), ((300, 500), 64, 128, 1.0), ((90, 90), 80, 64, 2.0)]
)
def test_pictures_equal_diffusers(
    kontext: FluxPipeline, theirs: FluxKontextPipeline, size: tuple[int, int], width: int, height: int, cfg: float
) -> None:
    picture = sketch(*size)
    expected = theirs(
        image=picture,
        prompt="un café, make it night",
        negative_prompt="a dog",
        true_cfg_scale=cfg,
        width=width,
        height=height,
        max_area=width * height,
        num_inference_steps=2,
        guidance_scale=2.5,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images[0]
    request = complete_request(
        kontext.card,
        "un café, make it night",
        inputs=read_inputs(picture),
        negative_prompt="a dog",
        true_cfg_scale=cfg,
        width=width,
        height=height,
        num_inference_steps=2,
        seed=7,
    )
    (sample,) = kontext.begin(request)
    while not sample.done:
        kontext.step([sample])
    drawn = kontext.decode(sample)
    assert drawn.std() > 5
    assert np.abs(drawn.astype(float) - np.round(expected * 255)).max() <= 2


@pytest.mark.parametrize(
    "size", [(1, 1), (1024, 1024), (4000, 100), (100, 4000), (1000, 700), (1057, 1000), (672, 1568), (880, 1184)]
)
def test_the_nearest_of_its_sizes_is_read(size: tuple[int, int]) -> None:
    rule = VARIANTS["kontext"].references
    assert rule is not None
    assert set(rule.sizes) == set(PREFERRED_KONTEXT_RESOLUTIONS)
    aspect = size[0] / size[1]
    _, width, height = min((abs(aspect - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
    assert rule.frame(*size).size == (width, height)
    assert rule.frame(width, height).size == (width, height)


def test_auto_is_the_size_read_and_a_second_picture_is_refused(kontext: FluxPipeline) -> None:
    request = complete_request(kontext.card, "night", inputs=read_inputs(sketch(200, 100)))
    assert (request.width, request.height) == (request.references[0].width, request.references[0].height) == (1456, 720)
    assert (request.num_inference_steps, request.guidance_scale) == (28, 2.5)
    with pytest.raises(InvalidRequest) as refusal:
        complete_request(kontext.card, "night", inputs=read_inputs([sketch(64, 64)] * 2))
    assert refusal.value.code == "too_many_images"


@pytest.mark.parametrize(
    ("made", "name", "option", "variant"),
    [
        ("kontext", "anything", None, "kontext"),
        ("krea", "anything", None, "krea"),
        ("dev", "FLUX.1-Krea-dev", None, "krea"),
        ("dev", "FLUX.1-Kontext-dev", None, "dev"),
        ("dev", "anything", "kontext", "kontext"),
        ("kontext", "anything", "dev", "dev"),
        ("dev", "anything", None, "dev"),
        ("schnell", "kontext", None, "schnell"),
    ],
)
def test_folders_are_told_by_class_name_or_option(
    tiny_checkpoint: MakeCheckpoint, tmp_path: Path, made: str, name: str, option: str | None, variant: str
) -> None:
    folder = tmp_path / name
    shutil.copytree(tiny_checkpoint(made), folder)
    assert load(folder, variant=option).variant.name == variant


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("flux1-dev-kontext_fp8_scaled", "kontext"),
        ("FLUX1-Krea-dev", "krea"),
        ("flux1-dev", "dev"),
        ("model", "dev"),
    ],
)
def test_files_are_told_by_name(tiny_checkpoint: MakeCheckpoint, tmp_path: Path, name: str, variant: str) -> None:
    """Also where another model's folder lends the encoders."""
    file = tmp_path / f"{name}.safetensors"
    shutil.copy(tiny_checkpoint("dev", "bfl") / "flux1-dev.safetensors", file)
    shutil.copy(tiny_checkpoint("dev", "bfl") / "flux1-dev.json", tmp_path / f"{name}.json")
    opened = open_quietly(file, tiny_checkpoint("dev"))
    assert opened.variant.name == variant


def test_made_files_of_kontext_are_told(tiny_checkpoint: MakeCheckpoint) -> None:
    assert open_quietly(tiny_checkpoint("kontext", "bfl") / "flux1-kontext.safetensors").variant.name == "kontext"


@pytest.mark.parametrize(("made", "option"), [("schnell", "kontext"), ("dev", "schnell"), ("dev", "none")])
def test_an_option_that_cannot_be_is_refused(tiny_checkpoint: MakeCheckpoint, made: str, option: str) -> None:
    with pytest.raises(CheckpointError, match="variant"):
        load(tiny_checkpoint(made), variant=option)


def load(folder: Path, **options: Any) -> FluxPipeline:
    return FluxPipeline.from_pretrained(str(folder), dtype="float32", device="cpu", **options)
