"""Pictures at the pipeline's edges: rounding, codecs, what is written into files, resampling, masks."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fluxserve.errors import InvalidRequest
from fluxserve.input_images import shrink_image
from fluxserve.pipeline import images
from fluxserve.request import GenerationRequest, OutputFormat
from fluxserve.sizes import Box

ABOUT = {"Software": "AI generated;txt2img;flux", "model": "m", "prompt": "Ein Apfel, 苹果 🍎", "seed": "7"}


def request(**changes: object) -> GenerationRequest:
    fields: dict[str, object] = {
        "prompt": "x",
        "width": 64,
        "height": 48,
        "seeds": (7,),
        "num_inference_steps": 1,
        "guidance_scale": None,
        "max_sequence_length": 8,
    }
    return GenerationRequest(**(fields | changes))  # type: ignore[arg-type]


def natural_pixels(width: int = 64, height: int = 48) -> images.Pixels:
    """Smooth with a little grain, as photographs are."""
    rows, columns = np.mgrid[0:height, 0:width]
    base = np.stack([rows * 3 + columns, columns * 4, rows * 2 + 60], axis=-1)
    grain = np.random.default_rng(0).integers(0, 6, base.shape)
    return (base + grain).clip(0, 255).astype(np.uint8)


def test_to_uint8_clamps_and_rounds_to_nearest() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0]).reshape(1, 1, 6).expand(3, 1, 6)
    assert images.to_uint8(values)[0, :, 0].tolist() == [0, 0, 128, 255, 255, 255]
    pixels = natural_pixels()
    assert np.array_equal(images.to_uint8(images.to_tensor(pixels)), pixels)


def test_png_is_lossless_and_tells_how_it_was_made() -> None:
    pixels = natural_pixels()
    image = images.encode(pixels, request(), 0, ABOUT)
    opened = Image.open(io.BytesIO(image.data))
    assert opened.format == "PNG"
    assert np.array_equal(np.asarray(opened), pixels)
    assert opened.text == ABOUT  # type: ignore[attr-defined]
    assert (image.seed, image.width, image.height) == (7, 64, 48)


def test_without_metadata_nothing_of_the_prompt_is_in_the_file() -> None:
    image = images.encode(natural_pixels(), request(metadata=False), 0, ABOUT)
    assert not Image.open(io.BytesIO(image.data)).text  # type: ignore[attr-defined]


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_lossy_formats_shrink_with_their_quality(output_format: OutputFormat) -> None:
    sizes = []
    for quality in (100, 50, 10):
        asked = request(output_format=output_format, output_compression=quality)
        image = images.encode(natural_pixels(256, 256), asked, 0, ABOUT)
        assert Image.open(io.BytesIO(image.data)).format == output_format.upper()
        sizes.append(len(image.data))
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("asked", "area", "drawn"),
    [
        ((256, 256), 128 * 128, (128, 128)),
        ((1024, 1024), 128 * 128, (128, 128)),
        ((512, 1024), 128 * 128, (96, 176)),
        ((4096, 64), 128 * 128, (1024, 32)),
    ],
)
def test_the_drawn_size_keeps_area_and_aspect(asked: tuple[int, int], area: int, drawn: tuple[int, int]) -> None:
    assert images.size_of_area(*asked, area) == drawn


@pytest.mark.parametrize("bad", ["nan", "inf", "constant"])
def test_a_picture_that_would_turn_silently_black_is_not_sound(bad: str) -> None:
    picture = torch.randn(3, 8, 8)
    assert images.is_sound(picture)
    if bad == "constant":
        picture = torch.zeros(3, 8, 8)
    else:
        picture[1, 2, 3] = float(bad)
    assert not images.is_sound(picture)


def rgba(alpha: int) -> bytes:
    pixels = np.full((32, 32, 4), 200, np.uint8)
    pixels[:, :16, 3] = alpha
    pixels[:, 16:, 3] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_transparent_mask_pixels_ask_for_repainting_and_opaque_ones_stay() -> None:
    picture = images.read_input(rgba(alpha=0), rgba(alpha=0), 32, 32)
    assert picture.repaint is not None
    assert picture.repaint[:, :12].min() == 1
    assert picture.repaint[:, 20:].max() == 0
    painted = np.zeros((32, 32, 3), np.uint8)
    kept = images.keep_unmasked(picture, painted)
    assert (kept[:, 20:] == picture.pixels[:, 20:]).all()
    assert (kept[:, :12] == 0).all()


def test_without_a_mask_transparency_is_white() -> None:
    picture = images.read_input(rgba(alpha=0), None, 32, 32)
    assert picture.repaint is None
    assert (picture.pixels[:, :12] == 255).all()
    assert (picture.pixels[:, 20:] == 200).all()


def test_uploads_are_stood_upright_and_brought_to_eight_bits() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    sideways, deep = io.BytesIO(), io.BytesIO()
    halves = np.zeros((32, 32, 3), np.uint8)
    halves[:, 16:] = 255
    Image.fromarray(halves).save(sideways, "PNG", exif=exif)
    Image.new("I;16", (32, 32), 40_000).save(deep, "PNG")
    upright = images.read_input(sideways.getvalue(), None, 32, 32).pixels
    assert (upright[:15] == 0).all()
    assert (upright[17:] == 255).all()
    assert (images.read_input(deep.getvalue(), None, 32, 32).pixels == 155).all()


@pytest.mark.parametrize(("image", "mask", "param"), [(b"GIF89a", None, "image"), (rgba(0), b"no picture", "mask")])
def test_unreadable_uploads_name_their_field(image: bytes, mask: bytes | None, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        images.read_input(image, mask, 32, 32)
    assert (caught.value.param, caught.value.code) == (param, f"invalid_{param}")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "1", "CMYK", "I;16"])
def test_a_shrunk_upload_reads_as_the_upload_itself(mode: str) -> None:
    """The server decodes and shrinks uploads in a process of its own; the model must see no difference."""
    noise = [Image.effect_noise((90, 70), sigma) for sigma in (60, 70, 80, 90)]
    picture, buffer, holed = Image.merge("RGBA", noise), io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.asarray(noise[0]).astype(np.uint16) * 257 + 3)
    source = deep if mode == "I;16" else picture.convert(mode)
    source.save(buffer, "JPEG" if mode == "CMYK" else "PNG", exif=exif)
    picture.save(holed, "PNG", exif=exif)
    image, mask = buffer.getvalue(), holed.getvalue()
    drawn, own = shrink_image(image, "image", Box((48, 64), 0, 0, 10**6))
    _, kept = shrink_image(mask, "mask", Box((48, 64), 0, 0, 10**6))
    for files, shrunk in (((image, None), (drawn.data, None)), ((image, mask), (drawn.data, kept.data))):
        expected, got = images.read_input(*files, 48, 64), images.read_input(*shrunk, 48, 64)
        assert np.array_equal(got.pixels, expected.pixels)
        assert (got.repaint is None) == (expected.repaint is None)
        assert got.repaint is None or np.array_equal(got.repaint, expected.repaint)
    repaint, expected_repaint = (images.read_input(image, it, 48, 64).repaint for it in (own.data, image))
    assert repaint is not None
    assert expected_repaint is not None
    assert np.array_equal(repaint, expected_repaint)
