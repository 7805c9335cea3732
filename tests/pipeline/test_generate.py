"""Python's `generate`: what HTTP takes, drawn by the small model that comes along, whole."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fluxserve import FluxPipeline
from fluxserve.config import PipelineConfig
from fluxserve.errors import InvalidRequest
from fluxserve.request import LoraChoice
from tests.conftest import MakeCheckpoint
from tests.fake_pipeline import shown_pixels
from tests.loras import write_loras
from tests.server.running import png

RED = (200, 30, 30)
SMALL = {"width": 64, "height": 64, "num_inference_steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    return FluxPipeline.from_pretrained("demo-untrained", device="cpu")


def mask(left_alpha: int, right_alpha: int) -> Image.Image:
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, left_alpha))
    picture.paste((0, 0, 0, right_alpha), (32, 0, 64, 64))
    return picture


def test_an_edit_takes_bytes_a_path_or_a_picture(pipeline: FluxPipeline, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    sources = (png(), tmp_path / "red.png", str(tmp_path / "red.png"), Image.open(io.BytesIO(png())))
    edits = [pipeline.generate("a cat", image=source, **SMALL)[0] for source in sources]
    assert len({edit.data for edit in edits}) == 1
    assert edits[0].data != pipeline.generate("a cat", **SMALL)[0].data


def test_a_mask_keeps_what_is_opaque(pipeline: FluxPipeline) -> None:
    (edit,) = pipeline.generate("a cat", image=png(color=RED), mask=mask(255, 0), **SMALL)
    change = np.abs(shown_pixels(edit).astype(int) - RED)
    assert change[:, :28].mean() < 2
    assert change[:, 36:].mean() > 10


def test_less_strength_stays_nearer() -> None:
    demo = FluxPipeline.from_pretrained(device="cpu")
    common = {"image": png(128, 128, RED), "num_inference_steps": 8, "seed": 3}
    near, far = (demo.generate("a cat", strength=strength, **common) for strength in (0.25, 1.0))  # type: ignore[arg-type]
    assert (near.timings.steps, far.timings.steps) == (2, 8)
    near_by, far_by = (np.abs(shown_pixels(edit[0]).astype(int) - RED).mean() for edit in (near, far))
    assert near_by < far_by


def test_without_a_prompt_a_picture_is_varied(pipeline: FluxPipeline) -> None:
    (varied,) = pipeline.generate(image=png(96, 64), num_inference_steps=5, seed=3)
    assert (varied.width, varied.height) == (96, 64)
    by_hand = pipeline.generate(image=png(96, 64), num_inference_steps=5, seed=3, strength=0.6)[0]
    assert varied.data == by_hand.data


def test_a_negative_prompt_acts_with_true_cfg(pipeline: FluxPipeline) -> None:
    plain, guided, otherwise = (
        pipeline.generate("a cat", true_cfg_scale=scale, negative_prompt=negative, **SMALL)[0]
        for scale, negative in ((1.0, "a dog"), (3.0, "a dog"), (3.0, "a house"))
    )
    assert (shown_pixels(plain) == shown_pixels(pipeline.generate("a cat", **SMALL)[0])).all()
    assert len({shown_pixels(image).tobytes() for image in (plain, guided, otherwise)}) == 3


def test_formats_and_metadata(pipeline: FluxPipeline) -> None:
    (coarse,), (fine,) = (
        pipeline.generate("a cat", output_format="jpeg", output_compression=quality, **SMALL) for quality in (5, 95)
    )
    assert (coarse.output_format, coarse.data[:2]) == ("jpeg", b"\xff\xd8")
    assert len(coarse.data) < len(fine.data)
    told = [
        Image.open(io.BytesIO(pipeline.generate("a cat", metadata=metadata, **SMALL)[0].data)).info
        for metadata in (True, False)
    ]
    assert (told[0]["Software"], told[1]) == ("AI generated;txt2img;flux", {})


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_edits_and_variations_are_labelled_as_such(pipeline: FluxPipeline, output_format: str) -> None:
    labels = []
    for prompt in ("a cat", ""):
        (image,) = pipeline.generate(prompt, image=png(color=RED), output_format=output_format, **SMALL)  # type: ignore[arg-type]
        picture = Image.open(io.BytesIO(image.data))
        labels.append(picture.info["Software"] if output_format == "png" else picture.getexif()[0x0131])
    assert labels == ["AI generated;img2img;flux"] * 2


def test_each_call_chooses_its_loras(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    config = PipelineConfig(str(tiny_checkpoint()), device="cpu", dtype="float32", lora_dir=str(write_loras(tmp_path)))
    pipeline = FluxPipeline.load(config, lambda *_: None)
    plain, named, half = (
        pipeline.generate("a cat", loras=loras, metadata=False, **SMALL)[0].data
        for loras in ([], ["style"], [LoraChoice("style", 0.5)])
    )
    assert len({plain, named, half}) == 3
    with pytest.raises(InvalidRequest, match="there are light, style, words"):
        pipeline.generate("a cat", loras=["none"], **SMALL)


def test_mistakes_are_named_before_anything_is_drawn(pipeline: FluxPipeline) -> None:
    for options, param in (
        ({"seed": -1}, "seed"),
        ({"n": 11}, "n"),
        ({"image": b"none"}, "image"),
        ({"mask": png()}, "mask"),
        ({"prompt": ""}, "prompt"),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            pipeline.generate(**({"prompt": "a cat"} | SMALL | options))  # type: ignore[arg-type]
        assert refusal.value.param == param
    with pytest.raises(TypeError, match="'steps'"):
        pipeline.generate("a cat", steps=3)  # type: ignore[call-arg]
