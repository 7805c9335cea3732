"""FLUX.3 image klein draws by pictures as diffusers does: one that is kept whole, several that are cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.modular_pipelines.flux3.image_processor import Flux3ImageProcessor
from PIL import Image

from fluxserve import FluxPipeline
from fluxserve.completion import complete_request
from fluxserve.input_images import opacity, read_inputs, scaled
from fluxserve.models.flux3.variants import VARIANTS
from fluxserve.pipeline.images import Pixels
from tests.conftest import MakeCheckpoint
from tests.fake_pipeline import shown_pixels
from tests.models.flux3.oracle import Flux3Oracle
from tests.models.loading import load
from tests.models.sketches import sketch, with_hole

PICTURES = [sketch(*size, seed=i) for i, size in enumerate(((121, 90), (100, 150), (72, 200)))]
RULE = VARIANTS["flux3-klein"].references
assert RULE is not None


@pytest.fixture(scope="module", params=["flux3-klein", "flux3-klein-base"])
def folder(request: pytest.FixtureRequest, tiny_checkpoint: MakeCheckpoint) -> Path:
    return tiny_checkpoint(request.param)


@pytest.fixture(scope="module")
def ours(folder: Path) -> FluxPipeline:
    pipeline = load(folder)
    pipeline.run(complete_request(pipeline.card, "warm", width=64, height=64, num_inference_steps=1))
    return pipeline


def draw(pipeline: FluxPipeline, *pictures: Image.Image, **options: Any) -> Pixels:
    given = {"num_inference_steps": 4, "seed": 7} | options
    request = complete_request(pipeline.card, "un café, 雪の山の家", inputs=read_inputs(pictures), **given)
    (sample,) = pipeline.begin(request)
    while not sample.done:
        pipeline.step([sample])
    return pipeline.decode(sample)


def test_pictures_equal_diffusers(folder: Path, ours: FluxPipeline) -> None:
    """One, whose answer is cut back to it, and three; with and without a size of its own; two seeds."""
    theirs = Flux3Oracle(folder, distilled="base" not in folder.name)
    for count, seed, asked in (
        (1, 7, {}),
        (1, 8, {"width": 64, "height": 144}),
        (3, 7, {}),
        (3, 8, {"width": 96, "height": 64}),
    ):
        expected = theirs.draw("un café, 雪の山の家", *PICTURES[:count], seed=seed, num_inference_steps=4, **asked)
        drawn = draw(ours, *PICTURES[:count], seed=seed, **asked)
        assert drawn.shape == expected.shape
        assert drawn.std() > 5
        assert np.abs(drawn.astype(float) - expected).max() <= 2


@pytest.mark.parametrize(
    "size", [(64, 64), (65, 200), (91, 117), (1000, 750), (2047, 2049), (3000, 2000), (5000, 700), (512, 64)]
)
def test_pictures_are_framed_as_by_diffusers(size: tuple[int, int]) -> None:
    """Alone and as one of two; what was read so once is left as it is."""
    picture, processor = sketch(*size), Flux3ImageProcessor()
    for count, mode in ((1, "fill"), (2, "crop")):
        (tensor,), _ = processor.preprocess(picture, resize_mode=mode)
        expected = np.round((tensor.numpy().transpose(1, 2, 0) + 1) * 127.5)
        rule = RULE.of(count)
        frame = rule.frame(*size)
        assert (np.asarray(scaled(picture, frame)) == expected).all()
        again = rule.frame_of_size(frame.size, *frame.size)
        assert (again.scaled, again.size) == (frame.size, frame.size)
    left, top, right, bottom = processor.preprocess(picture, resize_mode="fill")[1]["reference_crop"]
    assert RULE.frame(*size).scaled == (right - left, bottom - top)


def test_a_masks_opacity_is_reflected_too() -> None:
    mask = Image.new("LA", (70, 70), (0, 255))
    mask.paste((0, 0), (0, 0, 10, 70))
    alpha = np.asarray(opacity(mask, RULE.frame(70, 70)))
    assert alpha.shape == (80, 80)
    assert not alpha[:, :15].any()
    assert (alpha[:, 15:] == 255).all()


def test_a_mask_keeps_the_rest_exactly(ours: FluxPipeline) -> None:
    picture = sketch(150, 118)
    request = complete_request(ours.card, "a cat", inputs=read_inputs(picture, with_hole(picture)), seed=7)
    assert (request.width, request.height, request.crop) == (160, 128, (150, 118))
    (image,) = ours.run(request)
    drawn, kept = shown_pixels(image).astype(int), np.asarray(picture).astype(int)
    assert (image.width, image.height) == (150, 118)
    assert (drawn[:, :70] == kept[:, :70]).all()
    assert np.abs(drawn[:, 85:] - kept[:, 85:]).mean() > 10


def test_a_picture_on_the_grid_needs_no_crop(ours: FluxPipeline) -> None:
    request = complete_request(ours.card, "a cat", inputs=read_inputs(sketch(96, 64)))
    assert (request.width, request.height, request.crop) == (96, 64, None)
