"""POST /v1/images/edits and /variations: uploads, masks, strength, form fields."""

from __future__ import annotations

import hashlib
import io
from typing import Any, Literal

import pytest
from PIL import Image

from fluxserve.input_images import shrink_image
from fluxserve.sizes import Box
from tests.server.conftest import StartServer
from tests.server.running import EDITS, VARIATIONS, Server, assert_error, echo, png

OPAQUE, CLEAR = (9, 9, 9, 255), (9, 9, 9, 0)
FIELDS = {"prompt": "a cat", "response_format": "b64_json"}


def edit(server: Server, *files: tuple[str, bytes], path: str = EDITS, **fields: str) -> dict[str, Any]:
    """The request that reached the pipeline."""
    response = server.send_form(path, {**FIELDS, **fields}, list(files))
    assert response.status_code == 200, response.text
    return echo(response.json()["data"][0])


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def digest(data: bytes, kind: Literal["image", "mask"] = "image", size: tuple[int, int] = (64, 64)) -> str:
    """Of what the pipeline gets for a file: a small PNG of what the model will read."""
    picture, opacity = shrink_image(data, kind, Box(size, 0, 0, 10**9))
    return hashlib.sha256((picture if kind == "image" else opacity).data).hexdigest()


@pytest.mark.behaviour(23)
def test_both_spellings_of_image_are_equal(echo_server: Server) -> None:
    image = png()
    single, listed = (edit(echo_server, (name, image), seed="7") for name in ("image", "image[]"))
    assert single == listed
    assert (single["image"], single["mask"], single["strength"]) == (digest(image), None, 0.75)


@pytest.mark.behaviour(23)
@pytest.mark.parametrize("names", [("image", "image"), ("image[]", "image[]"), ("image", "image[]")])
def test_two_images_are_too_many(echo_server: Server, names: tuple[str, str]) -> None:
    response = echo_server.send_form(EDITS, FIELDS, [(name, b"not even a picture") for name in names])
    assert_error(response, 400, "too_many_images", "image")


@pytest.mark.behaviour(24)
def test_masks(echo_server: Server) -> None:
    image, mask, holed = png(), png(color=CLEAR, mode="RGBA"), png(color=CLEAR, mode="RGBA")
    masked = edit(echo_server, ("image", image), ("mask", mask))
    assert (masked["mask"], masked["strength"]) == (digest(mask, "mask"), 1.0)
    own = edit(echo_server, ("image", holed))
    assert (own["mask"], own["strength"]) == (digest(holed, "mask"), 1.0)
    assert edit(echo_server, ("image", png(color=OPAQUE, mode="RGBA")))["mask"] is None


@pytest.mark.behaviour(25)
def test_bad_masks(echo_server: Server) -> None:
    for mask in (png(80, 64, CLEAR, "RGBA"), png(), png(color=OPAQUE, mode="RGBA"), b"junk"):
        response = echo_server.send_form(EDITS, FIELDS, [("image", png()), ("mask", mask)])
        assert_error(response, 400, "invalid_mask", "mask")
    two = [("image", png()), *[("mask", png(color=CLEAR, mode="RGBA"))] * 2]
    assert_error(echo_server.send_form(EDITS, FIELDS, two), 400, "invalid_mask", "mask")


@pytest.mark.behaviour(26)
def test_strength(echo_server: Server) -> None:
    image, mask = ("image", png()), ("mask", png(color=CLEAR, mode="RGBA"))
    assert edit(echo_server, image, strength="0.2")["strength"] == 0.2
    assert edit(echo_server, image, input_fidelity="high")["strength"] == 0.5
    assert edit(echo_server, image, input_fidelity="low")["strength"] == 0.75
    assert edit(echo_server, image, mask, input_fidelity="high")["strength"] == 1.0
    assert edit(echo_server, image, input_fidelity="high", strength="0.9")["strength"] == 0.9
    assert edit(echo_server, image, path=VARIATIONS)["strength"] == 0.6


@pytest.mark.behaviour(27)
def test_auto_is_the_inputs_size_scaled_down(echo_server: Server) -> None:
    def size(width: int, height: int, **fields: str) -> tuple[int, int]:
        request = edit(echo_server, ("image", png(width, height)), **fields)
        return request["width"], request["height"]

    assert size(64, 64) == (64, 64)
    assert size(40, 90) == (64, 96)  # a side has at least 64 pixels, in steps of 16; the card's area is 64x64
    assert size(400, 300) == (80, 64)
    assert size(400, 300, size="auto") == (80, 64)
    assert size(400, 300, size="128x96") == (128, 96)


@pytest.mark.behaviour(28)
def test_bad_uploads(echo_server: Server) -> None:
    whole = encoded(Image.effect_noise((64, 64), 90), "PNG")
    gif, svg = encoded(Image.new("RGB", (64, 64)), "GIF"), b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    for data in (b"", b"junk", whole[: len(whole) // 2], gif, svg, b"%PDF-1.4"):
        message = assert_error(echo_server.send_form(EDITS, FIELDS, [("image", data)]), 400, "invalid_image", "image")
        assert "0x" not in str(message)
    assert_error(echo_server.send_form(EDITS, FIELDS, [("mask", whole)]), 400, "missing_required_parameter", "image")
    assert_error(echo_server.send_form(EDITS, FIELDS, [("file", whole)]), 400, "missing_required_parameter", "image")


@pytest.mark.behaviour(28)
def test_odd_uploads_are_taken(echo_server: Server) -> None:
    base = Image.new("RGB", (64, 64), (1, 2, 3))
    odd = [
        encoded(Image.new("RGB", (1, 1)), "PNG"),
        encoded(base.convert("CMYK"), "JPEG"),
        encoded(Image.new("I;16", (64, 64), 40_000), "PNG"),
        encoded(base.convert("P"), "PNG", transparency=0),
        encoded(base.convert("L"), "JPEG"),
        encoded(base, "WEBP"),
    ]
    assert [edit(echo_server, ("image", data))["image"] for data in odd] == [digest(data) for data in odd]


@pytest.mark.behaviour(28)
def test_an_upload_lying_on_its_side_is_stood_up(echo_server: Server) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = encoded(Image.new("RGB", (96, 64)), "JPEG", exif=exif)
    request = edit(echo_server, ("image", sideways), ("mask", png(64, 96, CLEAR, "RGBA")))
    assert (request["width"], request["height"]) == (64, 80)


@pytest.mark.behaviour(28)
def test_a_picture_over_the_limit_is_not_decoded(start_server: StartServer) -> None:
    server = start_server("--max-input-pixels", "10000")
    assert server.send_form(EDITS, FIELDS, [("image", png(100, 100))]).status_code == 200
    message = assert_error(server.send_form(EDITS, FIELDS, [("image", png(101, 100))]), 400, "invalid_image", "image")
    assert "--max-input-pixels" in message["message"]


@pytest.mark.behaviour(29)
def test_form_fields_are_read_as_what_they_stand_for(echo_server: Server) -> None:
    request = edit(
        echo_server,
        ("image", png()),
        n="2",
        seed="7",
        steps="5",
        guidance="2.5",
        true_cfg_scale="2",
        negative_prompt="5",
        stream="false",
        strength="1e-1",
    )
    assert (request["seeds"], request["num_inference_steps"], request["guidance_scale"]) == ([7, 8], 5, 2.5)
    assert (request["true_cfg_scale"], request["negative_prompt"], request["strength"]) == (2.0, "5", 0.1)


@pytest.mark.behaviour(29)
@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("n", "two", "invalid_type"),
        ("n", "٢", "invalid_type"),
        ("n", "1.5", "invalid_type"),
        ("n", "11", "invalid_value"),
        ("seed", "9" * 5000, "invalid_type"),
        ("strength", "nan", "invalid_type"),
        ("strength", "inf", "invalid_type"),
        ("strength", "0", "invalid_value"),
        ("guidance_scale", "1e999", "invalid_value"),
        ("stream", "1", "invalid_type"),
        ("input_fidelity", "medium", "invalid_value"),
        ("size", "7x7", "invalid_size"),
        ("loras", "{", "invalid_type"),
        ("loras", '[{"name": "a"}]', "lora_not_found"),
        ("prompt", " ", "invalid_value"),
    ],
)
def test_bad_form_fields(echo_server: Server, name: str, value: str, code: str) -> None:
    response = echo_server.send_form(EDITS, {**FIELDS, name: value}, [("image", png())])
    assert_error(response, 400, code, name)


@pytest.mark.behaviour(29)
@pytest.mark.parametrize(
    "brackets",
    [
        [("name", "a"), ("name", "b"), ("scale", "0.5"), ("scale", "1")],
        [("name", "a"), ("scale", "0.5"), ("name", "b"), ("scale", "1")],
        [("name", "a"), ("name", "b")],
    ],
)
def test_loras_in_brackets_are_paired(echo_server: Server, brackets: list[tuple[str, str]]) -> None:
    assert_error(send_brackets(echo_server, brackets), 400, "lora_not_found", "loras")


@pytest.mark.behaviour(29)
@pytest.mark.parametrize(
    "brackets", [[("name", "a"), ("name", "b"), ("scale", "0.5")], [("scale", "1")], [("name", "a"), ("scale", "9")]]
)
def test_loras_that_cannot_be_paired(echo_server: Server, brackets: list[tuple[str, str]]) -> None:
    assert_error(send_brackets(echo_server, brackets), 400, "invalid_value", "loras")


def send_brackets(server: Server, brackets: list[tuple[str, str]]) -> Any:
    parts: list[tuple[str, Any]] = [(f"loras[][{key}]", (None, value)) for key, value in brackets]
    return server.request("POST", EDITS, files=[("prompt", (None, "a cat")), ("image", ("upload", png())), *parts])


def test_pictures_by_url_are_never_fetched(echo_server: Server) -> None:
    for name in ("image", "image[]", "mask", "image_url", "images"):
        response = echo_server.send_form(EDITS, {**FIELDS, name: "http://127.0.0.1:1/x.png"}, [("image", png())])
        assert_error(response, 400, "unsupported_value", name)
    markup = echo_server.send_form(EDITS, FIELDS, [("image", png()), ("markup", png())])
    assert_error(markup, 400, "unsupported_value", "markup")


def test_a_field_may_stand_once(echo_server: Server) -> None:
    parts: list[Any] = [("prompt", (None, "a")), ("n", (None, "1")), ("n", (None, "2")), ("image", ("upload", png()))]
    assert_error(echo_server.request("POST", EDITS, files=parts), 400, "invalid_value", "n")


@pytest.mark.behaviour(30)
def test_a_variation_needs_no_prompt(echo_server: Server) -> None:
    response = echo_server.send_form(
        VARIATIONS, {"n": "2", "size": "64x96"}, [("image", png(color=CLEAR, mode="RGBA"))]
    )
    assert [item.keys() for item in response.json()["data"]] == [{"url", "seed"}] * 2
    request = edit(echo_server, ("image", png(color=CLEAR, mode="RGBA")), path=VARIATIONS)
    assert (request["prompt"], request["mask"]) == ("", None)


def test_the_usage_counts_the_input(echo_server: Server) -> None:
    body = echo_server.send_form(EDITS, {**FIELDS, "size": "64x64"}, [("image", png(100, 64))]).json()
    assert body["usage"]["input_tokens_details"] == {"text_tokens": 2, "image_tokens": 7 * 4}
