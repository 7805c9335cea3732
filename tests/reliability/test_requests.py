"""Bad input of every kind gets the answer of its row, runs nothing, and the next good request is served."""

from __future__ import annotations

import io
import json
import struct
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.decoding.test_damaged_files import png_chunks
from tests.decoding.test_damaged_files import png_of as png_of_chunks
from tests.decoding.test_damaged_files import typed as exif_with
from tests.fake_pipeline import expected_pixels
from tests.reliability.answers import assert_answer, parse
from tests.reliability.conftest import KEYS
from tests.server.conftest import StartServer
from tests.server.running import EDITS, GENERATIONS, Server, exchange, picture, png

SEED = 1200
"""Of every bad request: none may reach the pipeline."""

Case = tuple[int, dict[str, Any]]

RAW_BODIES: list[tuple[int, bytes]] = [
    *(
        (1, body)
        for body in (b"{", b'{"prompt":"a"', b"", b"\xff\xfe{}", b'{"prompt":"\xff"}', b"prompt=a", b"{'a':1}")
    ),
    (2, b"[" * 100_000),
    (2, b'{"prompt":"a","user":' + b'{"a":' * 100_000),
    *(
        (70, b'{"prompt":"a",%s}' % many)
        for many in (
            b",".join(b'"k%d":0' % i for i in range(1001)),
            b",".join(b'"k%d":0' % (i % 9_999) for i in range(10_000)),
            b'"user":[' + b"0," * 10_000 + b"0]",
            b'"user":[' + b"{}," * 100_000 + b"0]",
        )
    ),
    *((3, b'{"prompt":"a","%s":%s}' % (name, b"9" * 5000)) for name in (b"n", b"seed", b"steps", b"guidance_scale")),
    *((4, b'{"prompt":"a","guidance_scale":%s}' % number) for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999")),
    *((5, body) for body in (b"[]", b'"a"', b"null", b"1", b'{"prompt":null}', b'{"prompt":"a","n":true}')),
    (8, b"{}"),
    (10, b'{"prompt":"\\ud800"}'),
]

FIELDS: list[Case] = [
    *((8, {"prompt": prompt}) for prompt in ("", " ", "\n\t ")),
    (9, {"prompt": "x" * 32_001}),
    (10, {"prompt": "a\0b"}),
    *((12, {"n": n}) for n in (0, 11, -1, 1.5, "2", True, [1])),
    *((13, {"size": size}) for size in ("1000x1000", "0x64", "-64x64", "99999x99999", "٦٤x٦٤", "64x", "64 x64", "7x7")),
    *((15, {"guidance_scale": scale}) for scale in (-1, -0.001)),
    *((15, {"steps": steps}) for steps in (0, -1, 10**9)),
    *((15, {"seed": seed}) for seed in (-2, 2**64)),
    *((16, {"model": name}) for name in ("sdxl", "../x", "x" * 5000)),
]


@pytest.mark.fault(1, 2, 3, 4, 5, 8, 10, 70)
@pytest.mark.parametrize(("fault", "body"), RAW_BODIES)
def test_bodies(server: Server, fault: int, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    assert_answer(fault, server.request("POST", GENERATIONS, content=body, headers=headers), 400)


@pytest.mark.fault(8, 9, 10, 12, 13, 15, 16)
@pytest.mark.parametrize(("fault", "fields"), FIELDS)
def test_fields(server: Server, fault: int, fields: dict[str, Any]) -> None:
    response = server.generate(**{"prompt": "a", "seed": SEED, **fields})
    assert_answer(fault, response, 404 if "model" in fields else 400)
    assert server.count("begin", SEED) == 0


@pytest.mark.fault(9, 10, 17)
def test_what_is_tolerated_is_warned_of(server: Server) -> None:
    for fault, fields, warning in (
        (9, {"prompt": "word " * 80}, "truncated:prompt=80/256"),
        (17, {"style": "vivid", "frame_count": 3}, "ignored:frame_count, ignored:style"),
        (17, {"foo": {"bar": 1}}, "unknown:foo"),
    ):
        response = server.generate(**fields)
        assert_answer(fault, response, 200)
        assert response.headers["x-fluxserve-warning"] == warning
    drawn = server.generate("a\x01b\x1f", response_format="file")
    assert_answer(10, drawn, 200)
    assert Image.open(io.BytesIO(drawn.content)).info["prompt"] == "ab"


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    "prompt", ["\U0001f408\u200d\u2b1b", "قطة تشرب", "a\u200b\u200fb", "\U00020000\U0002a6d6", "e\u0301"]
)
def test_every_script_is_drawn(server: Server, prompt: str) -> None:
    drawn = [server.generate(prompt, seed=1100, response_format="b64_json") for _ in range(2)]
    for response in drawn:
        assert_answer(11, response)
    first, second = (response.json()["data"][0]["b64_json"] for response in drawn)
    assert first == second
    assert np.array_equal(picture(first), expected_pixels(1100, 64, 64))


@pytest.mark.fault(14, 17)
def test_work_and_strictness(guarded: Server) -> None:
    key = {"authorization": f"Bearer {KEYS[0]}"}
    over = guarded.generate(size="64x64", steps=41, headers=key)
    assert_answer(14, over)
    assert (over.json()["error"]["param"], str(64 * 64 * 40) in over.text) == ("num_inference_steps", True)
    assert_answer(14, guarded.generate(size="64x64", steps=21, true_cfg_scale=2, negative_prompt="b", headers=key))
    assert guarded.generate(size="64x64", steps=40, headers=key).status_code == 200
    assert_answer(17, guarded.generate(foo=1, headers=key), 400)


@pytest.mark.fault(6)
def test_bodies_beyond_the_cap_are_not_read(server: Server) -> None:
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    endless = [b"10000\r\n" + b" " * 65536 + b"\r\n"] * 17
    for parts in (
        [head + b"Content-Length: 1048577\r\n\r\n"],
        [head + b"Content-Length: 999999999999999\r\n\r\n"],
        [head + b"Transfer-Encoding: chunked\r\n\r\n", *endless],
    ):
        response = parse(exchange(server, parts))
        assert_answer(6, response)
        assert response.headers["connection"] == "close"


@pytest.mark.fault(7, 18)
def test_types_paths_and_methods(server: Server) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        body = json.dumps({"prompt": "a", "seed": SEED})
        assert_answer(7, server.request("POST", GENERATIONS, content=body, headers={"content-type": kind}))
    for path in ("/v2", "/v1/nowhere", "/.env", "/v1/images/generations/x", "/%2e%2e/", "/wp-login.php"):
        assert_answer(18, server.get(path), 404)
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"):
        response = server.request(method, GENERATIONS)
        assert_answer(18, response, 405)
        assert response.headers["allow"] == "POST"
    assert server.count("begin", SEED) == 0


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG whose header promises this size."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


BASE = Image.new("RGB", (64, 64), (1, 2, 3))
BAD_UPLOADS = {
    "empty": b"",
    "cut": png()[: len(png()) // 2],
    "200 megapixels": png_of(20_000, 10_000, png_chunk(b"IDAT", zlib.compress(bytes(1000)))),
    "2^31 pixels wide": png_of(2**31 - 1, 1, png_chunk(b"IDAT", zlib.compress(b"\0"))),
    "a zTXt bomb": png_of(64, 64, png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80 * 2**20)))),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "a GIF of 500 frames": encoded(BASE.convert("P"), "GIF", save_all=True, append_images=[BASE.convert("P")] * 499),
    "a TIFF": encoded(BASE, "TIFF"),
    "a script": b"#!/bin/sh\necho",
    "an indexed PNG without a palette": png_of_chunks(
        [chunk for chunk in png_chunks(encoded(BASE.convert("P"), "PNG", transparency=0)) if chunk[0] != b"PLTE"]
    ),
}
ODD_UPLOADS = {
    "one pixel": encoded(Image.new("RGB", (1, 1)), "PNG"),
    "CMYK": encoded(BASE.convert("CMYK"), "JPEG"),
    "16 bits": encoded(Image.new("I;16", (64, 64), 40_000), "PNG"),
    "alpha": encoded(BASE.convert("RGBA"), "PNG"),
    "EXIF with a turn and a tag of an odd type": encoded(BASE, "JPEG", exif=exif_with(13, 4, b"\xff\xff\xff\xff")),
    "a colour profile": encoded(BASE, "PNG", icc_profile=b"\0" * 128),
}


@pytest.mark.fault(56, 78)
@pytest.mark.parametrize("name", [*BAD_UPLOADS, *ODD_UPLOADS])
def test_uploads(server: Server, name: str) -> None:
    seed = SEED if name in BAD_UPLOADS else 5600
    data = {**BAD_UPLOADS, **ODD_UPLOADS}[name]
    response = server.send_form(EDITS, {"prompt": "a", "seed": str(seed)}, [("image", data)])
    assert_answer(56, response, 200 if name in ODD_UPLOADS else 400)
    assert name in ODD_UPLOADS or "0x" not in response.text
    assert server.count("begin", SEED) == 0


@pytest.mark.fault(57)
def test_forms(server: Server) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'
    for body, kind in (
        (b"", "multipart/form-data; boundary=x"),
        (b"hello", "multipart/form-data; boundary=x"),
        (part + b"a cat", "multipart/form-data; boundary=x"),
        (part + b"\xff\r\n--x--\r\n", "multipart/form-data; boundary=x"),
        (part + b"a\r\n--x--\r\n", "multipart/form-data"),
    ):
        response = server.request("POST", EDITS, content=body, headers={"content-type": kind})
        assert_answer(57, response, 400)
    for fields, files in (
        ({f"f{i}": "x" for i in range(65)}, [("image", png())]),
        ({"prompt": "a"}, [(f"f{i}", b"x") for i in range(18)]),
        ({"prompt": "x" * (256 * 1024 + 1)}, [("image", png())]),
    ):
        response = server.send_form(EDITS, fields, files)
        assert_answer(57, response, 413)


@pytest.mark.fault(19, 31)
def test_keys_and_rates(guarded: Server) -> None:
    def status(*authorization: bytes) -> httpx.Response:
        lines = [b"GET /v1/models HTTP/1.1", b"Host: localhost", b"Connection: close"]
        lines += [b"Authorization: " + value for value in authorization]
        return parse(exchange(guarded, [b"\r\n".join(lines) + b"\r\n\r\n"]))

    for values in (
        (),
        (b"Bearer wrong",),
        (b"Bearer \xe9\xff",),
        (b"Bearer first", b"Bearer first"),
        (b"Basic first",),
    ):
        assert_answer(19, status(*values))
    assert status(b"Bearer first").status_code == 200

    def burst(key: str) -> list[httpx.Response]:
        return [guarded.generate(n=0, headers={"authorization": f"Bearer {key}"}) for _ in range(40)]

    refused = [response for response in burst(KEYS[1]) if response.status_code == 429]
    assert len(refused) >= 9
    for response in refused:
        assert_answer(31, response, 429)
        assert response.headers["x-ratelimit-remaining-requests"] == "0"
    assert_answer(31, guarded.generate(headers={"authorization": f"Bearer {KEYS[0]}"}), 200)


@pytest.mark.fault(20)
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "localhost.evil.example"},
        {"host": "127.0.0.1.nip.io"},
        {"host": ""},
        {"host": "localhost@evil.example"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_hosts_and_origins(server: Server, headers: dict[str, str]) -> None:
    assert_answer(20, server.generate(seed=SEED, headers=headers))
    assert server.count("begin", SEED) == 0


@pytest.mark.fault(21)
def test_forwarded_headers_are_ignored(server: Server) -> None:
    forged = {"x-forwarded-host": "evil.example", "x-forwarded-proto": "https", "x-forwarded-for": "10.0.0.1"}
    response = server.generate(headers={**forged, "forwarded": "host=evil.example"})
    assert_answer(21, response)
    assert response.json()["data"][0]["url"].startswith(server.url)


@pytest.mark.fault(65)
@pytest.mark.parametrize("most", [64 * 64, 5000, 10_000, 128 * 128 - 1, 100_000])
@pytest.mark.parametrize("by", ["option", "memory"])
def test_defaults_and_advice_obey_the_limit(start_server: StartServer, most: int, by: str) -> None:
    flags = ["--max-pixels", str(most)] if by == "option" else []
    variables = {"FLUXSERVE_FAKE_PIXELS": str(most)} if by == "memory" else {}
    variables["FLUXSERVE_FAKE_SIZE"] = "256"
    server = start_server(*flags, variables=variables)

    def drawn(response: httpx.Response) -> int:
        assert_answer(65, response, 200)
        width, height = map(int, response.json()["size"].split("x"))
        assert width * height <= most
        return width * height

    assert drawn(server.generate()) >= most / 4
    drawn(server.send_form(EDITS, {"prompt": "a cat"}, [("image", png(640, 320))]))
    described = server.get("/v1/models").json()["data"][0]
    assert described["default_size"] == described["defaults"]["size"] == server.generate().json()["size"]
    for size in ("4096x4096", "4096x64", "64x4096", "1000x500", "640x320", "0x0", "0x9999"):
        refused = server.generate(size=size)
        assert_answer(65, refused, 400)
        advised = refused.json()["error"]["message"].rpartition(" ")[2]
        drawn(server.generate(size=advised))
