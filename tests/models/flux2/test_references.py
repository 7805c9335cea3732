"""FLUX.2 [klein] draws by pictures as diffusers does, one and several, in order; they are encoded once and batched."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from openai import OpenAI
from PIL import Image

from fluxserve import FluxPipeline
from fluxserve.completion import complete_request
from fluxserve.errors import Cancelled, InvalidRequest
from fluxserve.input_images import read_inputs, scaled
from fluxserve.pipeline.images import Pixels
from fluxserve.pipeline.samples import Sample
from tests.conftest import MakeCheckpoint
from tests.fake_pipeline import shown_pixels
from tests.models.sketches import as_png, sketch, with_hole
from tests.server import running
from tests.server.running import REAL_WORKER

SIZES = ((120, 90), (100, 150), (72, 200))
PICTURES = [sketch(*size, seed=i) for i, size in enumerate(SIZES)]


def load(folder: Path, **options: Any) -> FluxPipeline:
    pipeline = FluxPipeline.from_pretrained(str(folder), dtype="float32", device="cpu", **options)
    pipeline.run(complete_request(pipeline.card, "warm", width=64, height=64, num_inference_steps=1))
    return pipeline


def load_theirs(folder: Path) -> Flux2KleinPipeline:
    pipeline = Flux2KleinPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def klein(tiny_checkpoint: MakeCheckpoint) -> FluxPipeline:
    return load(tiny_checkpoint("klein"))


def begin(pipeline: FluxPipeline, *pictures: Image.Image, prompt: str = "a cat", **options: Any) -> list[Sample]:
    options = {"num_inference_steps": 4, "seed": 7} | options
    return pipeline.begin(complete_request(pipeline.card, prompt, inputs=read_inputs(pictures), **options))


def draw(pipeline: FluxPipeline, *pictures: Image.Image, **options: Any) -> Pixels:
    (sample,) = begin(pipeline, *pictures, **options)
    while not sample.done:
        pipeline.step([sample])
    return pipeline.decode(sample)


@pytest.mark.parametrize("variant", ["klein", "klein-base"])
def test_pictures_equal_diffusers(tiny_checkpoint: MakeCheckpoint, variant: str) -> None:
    """One and three references of different sizes, all of them cut; with and without a size of its own."""
    folder = tiny_checkpoint(variant)
    ours = load(folder)
    theirs = load_theirs(folder)
    for count, asked in ((1, {}), (3, {}), (3, {"width": 64, "height": 144})):
        expected = theirs(
            prompt="un café, 雪の山の家",
            image=PICTURES[:count],
            num_inference_steps=4,
            guidance_scale=ours.card.true_cfg_scale,
            generator=torch.Generator().manual_seed(7),
            output_type="np",
            **asked,
        ).images[0]
        drawn = draw(ours, *PICTURES[:count], prompt="un café, 雪の山の家", **asked)
        assert drawn.shape == expected.shape
        assert drawn.std() > 5
        assert np.abs(drawn.astype(float) - np.round(expected * 255)).max() <= 2


def test_a_large_picture_is_shrunk_as_by_diffusers(klein: FluxPipeline, tiny_checkpoint: MakeCheckpoint) -> None:
    picture, options = sketch(1300, 900), {"width": 64, "height": 96, "num_inference_steps": 1}
    expected = load_theirs(tiny_checkpoint("klein"))(
        prompt="a cat", image=picture, generator=torch.Generator().manual_seed(7), output_type="np", **options
    ).images[0]
    assert np.abs(draw(klein, picture, **options).astype(float) - np.round(expected * 255)).max() <= 2
    assert klein.card.references is not None
    assert klein.card.references.frame(1300, 900).size == (1216, 848)


@pytest.mark.parametrize(
    "size", [(64, 64), (65, 200), (1024, 1024), (1025, 1024), (3000, 400), (4000, 500), (500, 4000), (1500, 1499)]
)
def test_pictures_are_framed_as_by_diffusers(klein: FluxPipeline, size: tuple[int, int]) -> None:
    picture, rule = sketch(*size), klein.card.references
    assert rule is not None
    processor = Flux2ImageProcessor()
    shrunk = processor._resize_if_exceeds_area(processor.check_image_input(picture))
    expected = processor._resize_and_crop(shrunk, shrunk.width // 16 * 16, shrunk.height // 16 * 16)
    frame = rule.frame(*size)
    drawn = scaled(picture, frame)
    assert drawn.size == frame.size == expected.size
    assert (np.asarray(drawn) == np.asarray(expected)).all()
    again = rule.frame_of_size(frame.size, *frame.size)
    assert (again.scaled, again.size) == (frame.size, frame.size), "nothing is done to what has been read"


@pytest.mark.parametrize("size", [(63, 64), (64, 63), (64, 513), (513, 64)])
def test_what_diffusers_refuses_is_refused(klein: FluxPipeline, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="too"):
        Flux2ImageProcessor.check_image_input(sketch(*size))
    with pytest.raises(InvalidRequest, match="at least 64 pixels, the longer at most 8 times"):
        begin(klein, sketch(*size))


def test_each_picture_and_their_order_change_what_is_drawn(klein: FluxPipeline) -> None:
    a, b, c, other = (sketch(96, 80, seed=seed) for seed in range(4))
    orders = [(), (a,), (b,), (a, b), (b, a), (a, b, c), (a, c, b), (a, b, other), (other, b, c)]
    drawn = [draw(klein, *pictures, width=96, height=64).astype(float) for pictures in orders]
    for i, one in enumerate(drawn):
        for another in drawn[:i]:
            assert np.abs(one - another).mean() > 0.02, "levels; equal requests give equal pictures"


def test_a_picture_is_encoded_once_for_all_images_and_requests(
    klein: FluxPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = sketch(80, 64, seed=11), sketch(64, 80, seed=12)
    autoencoder, sizes = klein.networks.model.autoencoder, []
    encode = autoencoder.encode
    monkeypatch.setattr(autoencoder, "encode", lambda pixels: sizes.append(pixels.shape[2:]) or encode(pixels))
    begin(klein, a, b, a, n=3)
    assert sizes == [(64, 80), (80, 64)]
    begin(klein, b, a, prompt="another")
    assert len(sizes) == 2
    cache = klein.pictures._references
    assert cache._bytes <= cache.limit_bytes
    begin(klein, sketch(80, 64, seed=13))
    assert len(sizes) == 3


def test_encoding_can_be_stopped_within(klein: FluxPipeline) -> None:
    calls = 0

    def cancellation() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Cancelled("enough")

    begin(klein, sketch(64, 64), prompt="known")
    request = complete_request(klein.card, "known", inputs=read_inputs(sketch(96, 96, seed=99)))
    with pytest.raises(Cancelled):
        klein.begin(request, cancellation)
    assert calls == 3


def test_samples_of_equal_references_share_a_step(klein: FluxPipeline) -> None:
    a, b = sketch(80, 64, seed=1), sketch(80, 64, seed=2)
    (one,), (two,) = begin(klein, a), begin(klein, b, seed=8)
    assert one.batch_key == two.batch_key
    assert begin(klein, a, b)[0].batch_key != one.batch_key
    assert begin(klein, sketch(96, 64), width=80, height=64)[0].batch_key != one.batch_key
    while not one.done:
        klein.step([one, two])
    for sample, picture, seed in ((one, a, 7), (two, b, 8)):
        assert np.abs(klein.decode(sample).astype(int) - draw(klein, picture, seed=seed)).max() <= 2


@pytest.mark.parametrize("asked", [{}, {"width": 64, "height": 96}])
def test_a_mask_keeps_the_rest_exactly(klein: FluxPipeline, asked: dict[str, int]) -> None:
    picture, second = sketch(150, 118), sketch(80, 64, seed=5)
    request = complete_request(
        klein.card, "a cat", inputs=read_inputs([picture, second], with_hole(picture)), seed=7, **asked
    )
    assert (request.width, request.height) == (tuple(asked.values()) or (144, 112))
    (image,) = klein.run(request)
    expected = picture.resize((64, 96), Image.Resampling.LANCZOS) if asked else picture.crop((3, 3, 147, 115))
    kept = request.width // 2 - 2
    drawn = shown_pixels(image).astype(int)
    assert (drawn[:, :kept] == np.asarray(expected)[:, :kept]).all()
    free = klein.run(complete_request(klein.card, "a cat", inputs=read_inputs([picture, second]), seed=7, **asked))
    assert np.abs(drawn[:, kept + 16 :] - np.asarray(expected)[:, kept + 16 :].astype(int)).mean() > 10
    assert image.data != free[0].data


def test_python_takes_one_or_several(klein: FluxPipeline, tmp_path: Path) -> None:
    picture = sketch(96, 64)
    picture.save(tmp_path / "a.png")
    options: dict[str, Any] = {"seed": 3, "metadata": False}
    one = klein.generate("a cat", image=picture, **options)[0]
    for images in ([picture], [as_png(picture)], (tmp_path / "a.png",)):
        assert klein.generate("a cat", images=images, **options)[0].data == one.data
    assert (one.width, one.height) == (96, 64)
    assert klein.generate("a cat", images=[picture, picture], **options)[0].data != one.data
    assert klein.generate(images=[picture], **options)[0].data != one.data, "a variation"
    weak = klein.generate("a cat", image=picture, strength=0.1, **options)[0]
    assert weak.data == one.data, "there is no strength"
    for wrong, code in (
        ({"images": [picture] * 5}, "too_many_images"),
        ({"images": [sketch(32, 64)]}, "invalid_image"),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            klein.generate("a cat", **wrong)  # type: ignore[arg-type]
        assert (refusal.value.param, refusal.value.code) == ("image", code)
    with pytest.raises(InvalidRequest, match="image or images"):
        klein.generate("a cat", image=picture, images=[picture])


@pytest.mark.parametrize(("asked", "most"), [(None, 4), (1, 1), (16, 16)])
def test_the_option_says_how_many(tiny_checkpoint: MakeCheckpoint, asked: int | None, most: int) -> None:
    assert load(tiny_checkpoint("klein"), max_input_images=asked).card.max_input_images == most
    assert load(tiny_checkpoint(), max_input_images=asked).card.max_input_images == 1


def test_streamed_weights_draw_the_same(klein: FluxPipeline, tiny_checkpoint: MakeCheckpoint) -> None:
    streamed = load(tiny_checkpoint("klein"), offload="stream")
    assert (draw(streamed, *PICTURES[::2]) == draw(klein, *PICTURES[::2])).all()


def test_pictures_are_served_with_previews(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    server = running.start([str(tiny_checkpoint("klein")), "--device", "cpu"], tmp_path, REAL_WORKER).wait_ready()
    try:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
        drawn = []
        for pictures in (PICTURES[::2], PICTURES[::-2]):
            files = [("a.png", as_png(picture)) for picture in pictures]
            events = list(
                client.images.edit(
                    image=files, prompt="a cat", stream=True, partial_images=2, extra_body={"seed": 5, "steps": 4}
                )
            )
            assert [event.type for event in events] == [*["image_edit.partial_image"] * 2, "image_edit.completed"]
            drawn.append([Image.open(io.BytesIO(base64.b64decode(event.b64_json))) for event in events])
        assert [image.size for image in drawn[0]] == [(112, 80)] * 3
        assert [image.size for image in drawn[1]] == [(64, 192)] * 3
    finally:
        server.stop()
