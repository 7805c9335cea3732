"""Requests are completed in one way for every caller: defaults, ranges, and what an input picture changes."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fluxserve.completion import LONGEST_PROMPT, RequestOptions, complete_request
from fluxserve.config import EngineConfig, ServerConfig
from fluxserve.errors import InvalidRequest
from fluxserve.input_images import EditInputs, read_inputs
from fluxserve.request import RANGES, GenerationRequest, LoraChoice
from fluxserve.server.contract.parameters import parse_parameters
from fluxserve.server.contract.resolve import ServingLimits, resolve_request
from fluxserve.server.contract.schemas import EditParameters, GenerationParameters
from fluxserve.sizes import nearest_size
from tests.fake_pipeline import CARD
from tests.server.running import png

GUIDED = replace(CARD, guidance_scale=3.5, guidance_max=10.0, loras=("light", "style"))


def http(inputs: EditInputs | None = None, **fields: Any) -> GenerationRequest:
    """The request that these fields of a body become."""
    schema = GenerationParameters if inputs is None else EditParameters
    parameters = parse_parameters({"prompt": "a cat", **fields}, schema)
    return resolve_request(parameters, inputs, "", ServingLimits(GUIDED, ServerConfig(), EngineConfig())).request


def python(inputs: EditInputs | None = None, **options: Any) -> GenerationRequest:
    return complete_request(GUIDED, "a cat", inputs=inputs, **options)


def test_the_defaults_are_the_cards() -> None:
    request = complete_request(GUIDED, "a cat", seed=7)
    assert request == GenerationRequest("a cat", 64, 64, (7,), 4, 3.5, 256)
    assert complete_request(CARD, "a cat", guidance_scale=2.0).guidance_scale is None, "it takes none"
    assert complete_request(GUIDED, "a cat", n=None, guidance_scale=None).guidance_scale == 3.5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 3, "num_inference_steps": 9, "guidance_scale": 2, "true_cfg_scale": 4.0, "negative_prompt": "a\x07 dog"},
        {"width": 128, "height": 96, "max_sequence_length": 12, "output_format": "jpeg", "output_compression": 3},
        {"strength": 0.3},
        {"solver": "dpmpp2m"},
        {"loras": ["style"]},
    ],
)
@pytest.mark.parametrize(
    "inputs", [None, read_inputs(png(80, 64)), read_inputs(png(80, 64), png(80, 64, (0, 0, 0, 0), "RGBA"))]
)
def test_http_and_python_come_to_the_same_request(options: dict[str, Any], inputs: EditInputs | None) -> None:
    assert http(inputs, seed=5, **options) == python(inputs, seed=5, **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name, allowed in RANGES.items()
        for value in (
            allowed.low - 1 - (name == "seed"),
            allowed.high + 1,
            math.nan,
            "3",
            True,
            *([] if allowed.real else [1.5]),
        )
    ]
    + [("strength", 0), ("strength", -0.1), ("n", 0)],
)
def test_what_lies_outside_its_range_is_refused_by_name_everywhere(name: str, value: object) -> None:
    for complete in (http, python):
        with pytest.raises(InvalidRequest) as refusal:
            complete(**{name: value})
        assert refusal.value.param == name
        assert name in refusal.value.message


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"width": 72, "height": 512}, "size", "invalid_size"),
        ({"width": 0, "height": 64}, "size", "invalid_size"),
        ({"width": 64.5, "height": 64}, "size", "invalid_size"),
        ({"guidance_scale": 11}, "guidance_scale", "invalid_value"),
        ({"max_sequence_length": 257}, "max_sequence_length", "invalid_value"),
        ({"negative_prompt": "\0"}, "negative_prompt", "invalid_value"),
        ({"negative_prompt": "\ud800"}, "negative_prompt", "invalid_value"),
        ({"negative_prompt": "a" * (LONGEST_PROMPT + 1)}, "negative_prompt", "string_above_max_length"),
        ({"output_format": "gif"}, "output_format", "invalid_value"),
        ({"solver": "heun"}, "solver", "invalid_value"),
        ({"solver": ["euler"]}, "solver", "invalid_value"),
        ({"loras": ["../style"]}, "loras", "lora_not_found"),
        ({"loras": "nowhere"}, "loras", "lora_not_found"),
        ({"loras": [LoraChoice("style", 4.5)]}, "loras", "invalid_value"),
        ({"loras": [LoraChoice("style", math.nan)]}, "loras", "invalid_value"),
        ({"loras": [{"name": "style"}]}, "loras", "invalid_type"),
        ({"loras": ["style"] * 9}, "loras", "invalid_value"),
    ],
)
def test_other_bad_options(options: RequestOptions, param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        complete_request(GUIDED, "a cat", **options)
    assert (refusal.value.param, refusal.value.code) == (param, code)


def test_one_rule_names_the_nearest_size() -> None:
    for complete in (lambda: http(size="72x512"), lambda: python(width=72, height=512)):
        with pytest.raises(InvalidRequest, match="the nearest is 80x512"):
            complete()


def test_a_size_within_the_memory_plan_and_no_larger() -> None:
    small = replace(CARD, max_pixels=128 * 128)
    assert complete_request(small, "a cat", width=128, height=128).width == 128
    with pytest.raises(InvalidRequest, match="memory budget"):
        complete_request(small, "a cat", width=144, height=128)


@pytest.mark.parametrize(
    ("asked", "most", "nearest"),
    [
        ((256, 256), 10_000, (96, 96)),
        ((4096, 64), 10_000, (144, 64)),
        ((64, 4096), 10_000, (64, 144)),
        ((4096, 2048), 2048 * 2048, (2896, 1440)),
        ((1000, 1000), 4096, (64, 64)),
        ((0, 9999), 2**22, (64, 4096)),
    ],
)
def test_the_nearest_size_keeps_limits_and_proportions(
    asked: tuple[int, int], most: int, nearest: tuple[int, int]
) -> None:
    assert nearest_size(*asked, most) == nearest


@pytest.mark.parametrize("prompt", ["", " \n\t", "\x01", "\0", None, 3])
def test_a_prompt_is_needed_without_a_picture(prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        complete_request(CARD, prompt)
    assert refusal.value.param == "prompt"


def test_the_strength_follows_from_what_is_sent() -> None:
    image, mask = png(), png(mode="RGBA", color=(0, 0, 0, 0))
    assert complete_request(CARD, "a cat", inputs=read_inputs(image)).strength == 0.75
    assert complete_request(CARD, "a cat", inputs=read_inputs(image, mask)).strength == 1.0
    assert complete_request(CARD, "", inputs=read_inputs(image)).strength == 0.6
    assert complete_request(CARD, "", inputs=read_inputs(image, mask)).strength == 1.0
    assert complete_request(CARD, "a cat", inputs=read_inputs(mask)).mask == mask
    varied = complete_request(CARD, "", inputs=read_inputs(mask))
    assert (varied.strength, varied.mask) == (0.6, None), "its own transparency is no mask"
    assert complete_request(CARD, "", inputs=read_inputs(image), strength=0.2).strength == 0.2


def test_the_size_is_the_inputs_scaled_down_to_the_models() -> None:
    assert (python(read_inputs(png(64, 80))).width, python(read_inputs(png(64, 80))).height) == (64, 64)
    wide = complete_request(replace(CARD, native_area=512 * 512), "a cat", inputs=read_inputs(png(200, 100)))
    assert (wide.width, wide.height) == (208, 96)


def test_an_unknown_option_is_a_mistake_in_the_program() -> None:
    with pytest.raises(TypeError, match="'hight' is not an option"):
        complete_request(CARD, "a cat", hight=64)  # type: ignore[call-arg]


def test_a_picture_is_bytes_or_a_path_or_pillows(tmp_path: Path) -> None:
    data = png(64, 48)
    (tmp_path / "a.png").write_bytes(data)
    held = Image.open(io.BytesIO(data))
    by_bytes, by_path, by_name, held_by_pillow = (
        read_inputs(source) for source in (data, tmp_path / "a.png", str(tmp_path / "a.png"), held)
    )
    assert by_bytes == by_path == by_name
    assert held_by_pillow is not None
    assert held_by_pillow.size == (64, 48)
    decoded = Image.open(io.BytesIO(held_by_pillow.image.data))
    assert (np.asarray(decoded) == np.asarray(held)).all()
    for mode in ("CMYK", "L", "P", "F", "RGBa"):
        assert read_inputs(Image.new(mode, (32, 16))) is not None


def test_a_picture_of_pillows_is_stood_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32)).save(buffer, "JPEG", exif=exif)
    sizes = [read_inputs(source).size for source in (buffer.getvalue(), Image.open(buffer))]  # type: ignore[union-attr]
    assert sizes == [(32, 64), (32, 64)]


@pytest.mark.parametrize(
    ("image", "mask", "param", "says"),
    [
        (b"no picture", None, "image", "must be a complete PNG, JPEG or WebP file"),
        (png()[:-60], None, "image", "must be a complete PNG, JPEG or WebP file"),
        ("/nowhere/a.png", None, "image", "No such file"),
        (png(), b"no picture", "mask", "must be a complete PNG, JPEG or WebP file"),
        (png(), png(32, 32, mode="RGBA"), "mask", "must have the image's size 64x64, got 32x32"),
        (png(), png(), "mask", "alpha channel"),
        (None, png(), "mask", "needs an image"),
    ],
)
def test_bad_pictures(image: Any, mask: Any, param: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refusal:
        read_inputs(image, mask)
    assert (refusal.value.param, refusal.value.code) == (param, f"invalid_{param}")


def test_a_white_mask_becomes_a_transparent_one() -> None:
    inputs = read_inputs(png(), png(color=(255, 255, 255)), "white")
    assert inputs is not None
    assert inputs.mask is not None
    assert inputs.mask.transparent
    for mask, mode, param in (
        (None, "white", "mask_mode"),
        (png(), "red", "mask_mode"),
        (png(color=(0, 0, 0)), "white", "mask"),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            read_inputs(png(), mask, mode)  # type: ignore[arg-type]
        assert refusal.value.param == param


def test_a_picture_transparent_somewhere_is_its_own_mask() -> None:
    clear = png(color=(1, 2, 3, 0), mode="RGBA")
    inputs, opaque = read_inputs(clear), read_inputs(png(color=(1, 2, 3, 255), mode="RGBA"))
    assert inputs is not None
    assert opaque is not None
    assert (inputs.mask, opaque.mask) == (inputs.image, None)
