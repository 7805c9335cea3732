"""Numbers, words, LoRAs and pictures as JSON, forms, languages and gateways write them."""

from __future__ import annotations

import base64
import json
import re
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from PIL import Image

from tests.server.conftest import StartServer
from tests.server.contract.test_edits import CLEAR, FIELDS, OPAQUE, digest, encoded
from tests.server.running import EDITS, GENERATIONS, VARIATIONS, Server, assert_error, echo, png

IMAGE, MASK = png(), png(color=CLEAR, mode="RGBA")


def data_url(data: bytes = IMAGE, head: str = "data:image/png;base64,") -> str:
    return head + base64.b64encode(data).decode()


def drawn(response: httpx.Response) -> dict[str, Any]:
    """The request that reached the pipeline."""
    assert response.status_code == 200, response.text
    return echo(response.json()["data"][0])


def post_json(server: Server, body: bytes | str, path: str = GENERATIONS) -> httpx.Response:
    return server.request("POST", path, content=body, headers={"content-type": "application/json"})


def post_parts(server: Server, *parts: tuple[str, str, bytes], path: str = EDITS) -> httpx.Response:
    """A form of (name, further headers and parameters, data), to the letter."""
    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name.encode(), head.encode(), data)
        for name, head, data in (("response_format", "", b"b64_json"), *parts)
    )
    headers = {"content-type": "multipart/form-data; boundary=x"}
    return server.request("POST", path, content=body + b"--x--\r\n", headers=headers)


NUMBERS = [
    ('"n": 2.0', "seeds", 2),
    ('"n": 2e0', "seeds", 2),
    ('"n": 20E-1', "seeds", 2),
    ('"steps": 4.0', "num_inference_steps", 4),
    ('"num_inference_steps": 4e0', "num_inference_steps", 4),
    ('"max_sequence_length": 77.0', "max_sequence_length", 77),
    ('"width": 96.0, "height": 1.28e2', "height", 128),
    ('"extra_body": {"steps": 4.0}', "num_inference_steps", 4),
    ('"seed": 18446744073709551615', "seeds", [2**64 - 1]),
    ('"seed": 9007199254740993', "seeds", [2**53 + 1]),
    ('"size": "", "quality": "", "model": "", "guidance": "", "loras": ""', "guidance_scale", 3.5),
    ('"seed": 7, "seed2": ""', "seeds", [7]),
]


@pytest.mark.behaviour(71)
@pytest.mark.parametrize(("fields", "name", "value"), NUMBERS)
def test_json(echo_server: Server, fields: str, name: str, value: object) -> None:
    for bom in (b"", b"\xef\xbb\xbf"):
        body = f'{{"prompt": "a cat", "response_format": "b64_json", {fields}}}'
        request = drawn(post_json(echo_server, bom + body.encode()))
        assert value in (request[name], len(request[name]) if name == "seeds" else None)


@pytest.mark.behaviour(71)
def test_a_seed_of_minus_one_is_drawn_and_told(echo_server: Server) -> None:
    seeds = set()
    for seed in ("-1", "-1.0", "null", '""'):
        answer = post_json(echo_server, f'{{"prompt": "a", "response_format": "b64_json", "seed": {seed}}}')
        seeds.add(answer.json()["data"][0]["seed"])
        assert drawn(answer)["seeds"] == [answer.json()["data"][0]["seed"]]
    for text in ("-1", "", "null", "None", "undefined"):
        answer = echo_server.send_form(EDITS, {**FIELDS, "seed": text}, [("image", IMAGE)])
        seeds.add(answer.json()["data"][0]["seed"])
    assert len(seeds) == 9
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert_error(echo_server.generate(seed=-2), 400, "invalid_value", "seed")
    assert_error(echo_server.generate(seed=2**64), 400, "invalid_value", "seed")


TEXTS = [
    ("n", "2.0", "seeds", 2),
    ("n", " 2 ", "seeds", 2),
    ("steps", "4e0", "num_inference_steps", 4),
    ("steps", "+4", "num_inference_steps", 4),
    ("strength", ".5", "strength", 0.5),
    ("strength", "1.", "strength", 1.0),
    ("strength", "5E-1", "strength", 0.5),
    ("strength", "", "strength", 0.75),
    ("stream", "False", "strength", 0.75),
    ("stream", "FALSE", "strength", 0.75),
    ("stream", "", "strength", 0.75),
    ("seed", "18446744073709551615", "seeds", [2**64 - 1]),
    ("seed", "18446744073709551615.0", "seeds", [2**64 - 1]),
    ("size", "", "width", 64),
    ("model", "", "width", 64),
    ("input_fidelity", "", "strength", 0.75),
]


@pytest.mark.behaviour(29, 71)
@pytest.mark.parametrize(("field", "text", "name", "value"), TEXTS)
def test_forms(echo_server: Server, field: str, text: str, name: str, value: object) -> None:
    request = drawn(echo_server.send_form(EDITS, {**FIELDS, field: text}, [("image", IMAGE)]))
    assert value in (request[name], len(request[name]) if name == "seeds" else None)


@pytest.mark.behaviour(29, 71)
def test_true_in_capitals_streams(echo_server: Server) -> None:
    for text in ("True", "TRUE", "true"):
        answer = echo_server.send_form(EDITS, {"prompt": "a", "stream": text}, [("image", IMAGE)])
        assert answer.headers["content-type"].startswith("text/event-stream")


PROMPTS = {
    "\r\nContent-Type: text/plain; charset=ISO-8859-1": "Käse",
    '\r\nContent-Type: text/plain; charset="windows-1251"': "кот",
    "\r\nContent-Type: text/plain;charset=UTF-8": "猫",
    "\r\nContent-Type: text/plain; charset=Shift_JIS": "猫",
    "\r\nContent-Type: text/plain": "Käse",
    "": "кот",
}


@pytest.mark.behaviour(71)
@pytest.mark.parametrize("head", PROMPTS)
def test_a_part_may_have_a_charset_of_its_own(echo_server: Server, head: str) -> None:
    charset = re.search(r'charset="?([\w-]+)', head)
    prompt = PROMPTS[head].encode(charset[1] if charset else "utf-8")
    answer = post_parts(echo_server, ("prompt", head, prompt), ("image", '; filename="a"', IMAGE))
    assert drawn(answer)["prompt"] == PROMPTS[head]


@pytest.mark.behaviour(57, 71)
def test_bad_text_parts_are_named(echo_server: Server) -> None:
    image = ("image", '; filename="a"', IMAGE)
    for charset in ("nonsense", "punycode", "zlib", "idna", "\xff"):
        head = f"\r\nContent-Type: text/plain; charset={charset}"
        assert_error(post_parts(echo_server, ("prompt", head, b"a"), image), 400, "invalid_multipart")
    assert_error(post_parts(echo_server, ("prompt", "", b"\xff\xfe"), image), 400, "invalid_multipart")
    large = post_parts(echo_server, ("prompt", "", b"a" * 300_000), image)
    assert "'prompt'" in assert_error(large, 413, "request_too_large")["message"]


@pytest.mark.behaviour(23, 72)
@pytest.mark.parametrize(
    "head", ["", "\r\nContent-Type: image/png", "\r\nContent-Type: application/octet-stream", '; filename=""']
)
@pytest.mark.parametrize("name", ["image", "image[]", "image[0]", "images", "images[]", "Image", "images[0]"])
def test_a_picture_needs_no_file_name(echo_server: Server, name: str, head: str) -> None:
    large = encoded(Image.effect_noise((640, 640), 90), "PNG")
    assert len(large) > 2**18
    for image in (IMAGE, large):
        answer = post_parts(echo_server, ("prompt", "", b"a"), (name, head, image), ("size", "", b"64x64"))
        assert drawn(answer)["image"] == digest(image)


@pytest.mark.behaviour(24, 72)
@pytest.mark.parametrize("name", ["mask", "mask[]", "Mask", "MASK", "mask[0]", "mask_image"])
def test_masks_under_names_in_use(echo_server: Server, name: str) -> None:
    answer = echo_server.send_form(EDITS, FIELDS, [("image", IMAGE), (name, MASK)])
    assert drawn(answer)["mask"] == digest(MASK, "mask")


@pytest.mark.behaviour(72)
def test_files_under_other_names_are_refused(echo_server: Server, start_server: StartServer) -> None:
    for name in ("masks", "alpha", "control_image", "mask-image", "file", "imagemask"):
        for path in (EDITS, VARIATIONS):
            answer = echo_server.send_form(path, FIELDS, [("image", IMAGE), (name, MASK)])
            assert_error(answer, 400, "unknown_parameter", name)
    alone = echo_server.send_form(EDITS, FIELDS, [("picture", IMAGE)])
    assert "picture" in assert_error(alone, 400, "missing_required_parameter", "image")["message"]
    with_mask = echo_server.send_form(VARIATIONS, FIELDS, [("image", IMAGE), ("mask", MASK)])
    assert_error(with_mask, 400, "unsupported_value", "mask")


@pytest.mark.behaviour(24, 72)
def test_an_empty_mask_is_none(echo_server: Server) -> None:
    for part in (("mask", '; filename=""', b""), ("mask", "", b""), ("mask[]", '; filename="m.png"', b"")):
        answer = post_parts(echo_server, ("prompt", "", b"a"), ("image", '; filename="a"', IMAGE), part)
        assert drawn(answer)["mask"] is None


@pytest.mark.behaviour(25)
def test_a_mask_that_changes_nothing_says_so(echo_server: Server) -> None:
    black_and_white = encoded(Image.new("L", (64, 64), 255), "PNG")
    opaque = png(color=OPAQUE, mode="RGBA")
    for mask in (black_and_white, opaque, encoded(Image.new("RGB", (64, 64)), "JPEG")):
        answer = echo_server.send_form(EDITS, FIELDS, [("image", IMAGE), ("mask", mask)])
        message = assert_error(answer, 400, "invalid_mask", "mask")["message"]
        assert "transparent" in message
        assert "mask_mode" in message


def halved(mode: str, left: Any, right: Any) -> Image.Image:
    """64 x 64."""
    picture = Image.new(mode, (64, 64), left)
    picture.paste(right, (32, 0, 64, 64))
    return picture


def painted(picture: Image.Image) -> Image.Image:
    """Indexed, as painting programs save few colours."""
    return picture.convert("RGB").quantize(4)


WHITE, BLACK = (255, 255, 255), (0, 0, 0)
WHITE_MASKS = {
    "grey": encoded(halved("L", 255, 0), "PNG"),
    "one bit": encoded(halved("1", 1, 0), "PNG"),
    "RGB": encoded(halved("RGB", WHITE, BLACK), "PNG"),
    "opaque RGBA": encoded(halved("RGBA", (*WHITE, 255), (*BLACK, 255)), "PNG"),
    "white on nothing": encoded(halved("RGBA", (*WHITE, 255), (*WHITE, 0)), "PNG"),
    "grey and alpha": encoded(halved("LA", (255, 255), (0, 255)), "PNG"),
    "indexed": encoded(painted(halved("L", 255, 0)), "PNG"),
    "16 bits": encoded(halved("I;16", 65535, 0), "PNG"),
    "WebP": encoded(halved("RGB", WHITE, BLACK), "WEBP", lossless=True),
}
CLEAR_LEFT = encoded(halved("RGBA", CLEAR, OPAQUE), "PNG")


@pytest.mark.behaviour(130)
@pytest.mark.parametrize("name", WHITE_MASKS)
def test_a_white_mask_is_one_that_is_transparent_there(echo_server: Server, name: str) -> None:
    fields, mask = FIELDS | {"response_format": "b64_json"}, WHITE_MASKS[name]
    form = echo_server.send_form(EDITS, fields | {"mask_mode": "white"}, [("image", IMAGE), ("mask", mask)])
    body = {"prompt": "a", "response_format": "b64_json", "image": data_url(), "mask": data_url(mask)}
    for request in (drawn(form), drawn(post_json(echo_server, json.dumps(body | {"mask_mode": "white"}), EDITS))):
        assert (request["mask"], request["strength"]) == (digest(CLEAR_LEFT, "mask"), 1.0)


@pytest.mark.behaviour(130)
@pytest.mark.parametrize("name", WHITE_MASKS)
def test_a_black_mask_is_the_other_way_round(echo_server: Server, name: str) -> None:
    fields = FIELDS | {"response_format": "b64_json", "mask_mode": "black"}
    form = echo_server.send_form(EDITS, fields, [("image", IMAGE), ("mask", WHITE_MASKS[name])])
    clear_right = encoded(halved("RGBA", OPAQUE, CLEAR), "PNG")
    assert drawn(form)["mask"] == digest(clear_right, "mask")


@pytest.mark.behaviour(130)
def test_grey_repaints_in_part_and_jpeg_nearly_so(echo_server: Server) -> None:
    fields = FIELDS | {"response_format": "b64_json", "mask_mode": "white"}
    for mask, opacity in (
        (encoded(halved("L", 128, 0), "PNG"), 127),
        (encoded(halved("RGB", (255, 0, 0), BLACK), "PNG"), 179),
        (encoded(halved("RGBA", (*WHITE, 64), BLACK), "PNG"), 191),
        (encoded(halved("L", 255, 0), "JPEG", quality=95), 0),
    ):
        request = drawn(echo_server.send_form(EDITS, fields, [("image", IMAGE), ("mask", mask)]))
        assert request["mask"] == digest(encoded(halved("LA", (0, opacity), (0, 255)), "PNG"), "mask")


@pytest.mark.behaviour(130)
@pytest.mark.parametrize(
    ("mask", "mode", "code", "param"),
    [
        (encoded(Image.new("L", (64, 64)), "PNG"), "white", "invalid_mask", "mask"),
        (encoded(Image.new("RGBA", (64, 64), (*WHITE, 0)), "PNG"), "white", "invalid_mask", "mask"),
        (encoded(Image.new("L", (64, 80), 255), "PNG"), "white", "invalid_mask", "mask"),
        (encoded(Image.new("L", (64, 64), 255), "PNG"), "black", "invalid_mask", "mask"),
        (b"junk", "white", "invalid_mask", "mask"),
        (None, "black", "conflicting_parameters", "mask_mode"),
        (None, "white", "conflicting_parameters", "mask_mode"),
        (b"", "white", "conflicting_parameters", "mask_mode"),
        (WHITE_MASKS["grey"], "luminance", "invalid_value", "mask_mode"),
        (WHITE_MASKS["grey"], "alpha", "invalid_mask", "mask"),
        (WHITE_MASKS["grey"], "", "invalid_mask", "mask"),
    ],
)
def test_masks_that_their_mode_cannot_read(
    echo_server: Server, mask: bytes | None, mode: str, code: str, param: str
) -> None:
    files = [("image", IMAGE), *([] if mask is None else [("mask", mask)])]
    assert_error(echo_server.send_form(EDITS, FIELDS | {"mask_mode": mode}, files), 400, code, param)


@pytest.mark.behaviour(130)
def test_a_mode_where_no_mask_is_taken_is_told(echo_server: Server) -> None:
    for path in (GENERATIONS, VARIATIONS):
        fields = {"response_format": "b64_json", "mask_mode": "white"}
        if path == GENERATIONS:
            answer = post_json(echo_server, json.dumps({"prompt": "a", **fields}))
        else:
            answer = echo_server.send_form(path, fields, [("image", IMAGE)])
        assert answer.headers["x-fluxserve-warning"].startswith("unknown:mask_mode")


REFERENCES: list[dict[str, Any]] = [
    {"images": [{"image_url": data_url()}]},
    {"images": [data_url()]},
    {"images": {"image_url": {"url": data_url()}}},
    {"image": data_url()},
    {"image": [data_url(head="data:application/octet-stream;base64,")]},
    {"image[]": data_url(head="DATA:IMAGE/PNG;BASE64,")},
    {"image_url": data_url(head="data:image/png;charset=utf-8;base64,")},
    {"image": data_url().rstrip("=")},
    {"image": data_url().replace("+", "-").replace("/", "_").replace("image_png", "image/png")},
    {"images": [{"image_url": data_url(head="data:;base64,"), "file_id": None}], "mask": None, "n": 1.0},
]


@pytest.mark.behaviour(73)
@pytest.mark.parametrize("fields", REFERENCES)
def test_edits_as_json(echo_server: Server, fields: dict[str, Any]) -> None:
    request = drawn(post_json(echo_server, json.dumps({"prompt": "a", "response_format": "b64_json", **fields}), EDITS))
    assert (request["image"], request["mask"], request["strength"]) == (digest(IMAGE), None, 0.75)
    for mask in ({"image_url": data_url(MASK)}, data_url(MASK), [{"image_url": data_url(MASK)}]):
        body = {"prompt": "a", "response_format": "b64_json", **fields, "mask": mask}
        for text in (json.dumps(body), json.dumps(body).replace("/", "\\/")):
            request = drawn(post_json(echo_server, b"\xef\xbb\xbf" + text.encode(), EDITS))
            assert (request["image"], request["mask"], request["strength"]) == (
                digest(IMAGE),
                digest(MASK, "mask"),
                1.0,
            )


@pytest.mark.behaviour(73)
def test_variations_as_json(echo_server: Server) -> None:
    body = {"image": data_url(), "response_format": "b64_json", "seed": 5}
    assert drawn(post_json(echo_server, json.dumps(body), VARIATIONS))["image"] == digest(IMAGE)


@pytest.mark.behaviour(73)
def test_large_pictures_as_json(echo_server: Server) -> None:
    large = encoded(Image.effect_noise((3000, 2000), 90).convert("RGB"), "PNG", compress_level=0)
    assert len(large) > 15 * 2**20
    body = {"prompt": "a", "response_format": "b64_json", "size": "64x64", "images": [{"image_url": data_url(large)}]}
    assert drawn(post_json(echo_server, json.dumps(body), EDITS))["image"] == digest(large)
    assert_error(post_json(echo_server, json.dumps(body)), 413, "request_too_large")
    assert_error(post_json(echo_server, b"[" * (64 * 2**20 + 1), EDITS), 413, "request_too_large")


BAD_REFERENCES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "missing_required_parameter", "image"),
    ({"images": []}, "missing_required_parameter", "image"),
    ({"images": [{"file_id": "file-1"}]}, "unsupported_value", "images"),
    ({"images": [{"image_url": "https://127.0.0.1:1/a.png"}]}, "unsupported_value", "images"),
    ({"image": "http://127.0.0.1:1/a.png"}, "unsupported_value", "image"),
    ({"image": "file:///etc/passwd"}, "unsupported_value", "image"),
    ({"image": "/etc/passwd"}, "unsupported_value", "image"),
    ({"image": base64.b64encode(IMAGE).decode()}, "unsupported_value", "image"),
    ({"image": 5}, "invalid_type", "image"),
    ({"image": [True]}, "invalid_type", "image"),
    ({"image": "data:image/png,abc"}, "invalid_image", "image"),
    ({"image": "data:image/png;base64,%%%"}, "invalid_image", "image"),
    ({"image": "data:"}, "invalid_image", "image"),
    ({"image": data_url(b"junk")}, "invalid_image", "image"),
    ({"image": data_url(), "mask": data_url(b"junk")}, "invalid_mask", "mask"),
    ({"image": data_url(), "mask": {"image_url": "ftp://a/b"}}, "unsupported_value", "mask"),
    ({"images": [{"image_url": data_url()}] * 2}, "too_many_images", "image"),
    ({"image": data_url(), "image[]": data_url()}, "too_many_images", "image"),
    ({"image": data_url(), "markup": {"image_url": data_url()}}, "unsupported_value", "markup"),
    ({"image": data_url(), "n": 0}, "invalid_value", "n"),
]


@pytest.mark.behaviour(73)
@pytest.mark.parametrize(("fields", "code", "param"), BAD_REFERENCES)
def test_bad_edits_as_json(echo_server: Server, fields: dict[str, Any], code: str, param: str) -> None:
    body = json.dumps({"prompt": "a", "seed": 7373, **fields})
    assert_error(post_json(echo_server, body, EDITS), 400, code, param)
    assert echo_server.count("begin", 7373) == 0


@pytest.mark.behaviour(73)
def test_data_urls_in_forms(echo_server: Server) -> None:
    for url in (data_url(), "data:image/png;base64," + quote(base64.b64encode(IMAGE))):
        for name in ("image", "image[]", "image_url", "images[0][image_url]"):
            answer = post_parts(echo_server, ("prompt", "", b"a"), (name, "", url.encode()))
            assert drawn(answer)["image"] == digest(IMAGE)
    masked = post_parts(
        echo_server,
        ("prompt", "", b"a"),
        ("image", '; filename="a"', IMAGE),
        ("mask", "", data_url(MASK).encode()),
    )
    assert drawn(masked)["mask"] == digest(MASK, "mask")


@pytest.mark.behaviour(28, 69)
@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encoded(Image.new("RGB", (64, 64)), "GIF"), "GIF"),
        (encoded(Image.new("RGB", (64, 64)), "BMP"), "BMP"),
        (encoded(Image.new("RGB", (64, 64)), "TIFF"), "TIFF"),
        (encoded(Image.new("I;16B", (64, 64)), "TIFF"), "TIFF"),
        (encoded(Image.new("RGB", (64, 64)), "AVIF"), "AVIF"),
        (b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif" + bytes(99), "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99), "HEIC"),
        (b"\xff\x0a" + bytes(99), "JPEG XL"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%PDF-1.7" + bytes(99), "PDF"),
        (base64.b64encode(IMAGE), "base64"),
    ],
)
def test_a_refused_picture_is_named(echo_server: Server, data: bytes, kind: str) -> None:
    for name in ("image", "mask"):
        files = [("image", IMAGE), (name, data)][name == "image" :]
        error = assert_error(echo_server.send_form(EDITS, FIELDS, files), 400, f"invalid_{name}", name)
        assert kind in error["message"]


@pytest.mark.behaviour(16, 69)
@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("background", "transparent", "no transparency"),
        ("output_format", "gif", "no animations"),
        ("output_format", "SVG", "no vector graphics"),
    ],
)
def test_what_is_not_made_is_refused_with_its_reason(echo_server: Server, field: str, value: str, reason: str) -> None:
    for answer in (
        echo_server.generate(**{field: value}),
        echo_server.send_form(EDITS, {**FIELDS, field: value}, [("image", IMAGE)]),
    ):
        assert reason in assert_error(answer, 400, "unsupported_value", field)["message"]
