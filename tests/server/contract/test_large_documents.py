"""Pictures in large JSON bodies are read in the decoding process, by every door, and are what files would have been."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from fluxserve.decoding.documents import LARGEST_REST, LONGEST_TEXT
from fluxserve.server.contract.body_parser import IN_FRONT_BYTES
from scripts.endurance.servers import children, worker_pid
from tests.server.contract.test_edits import digest, encoded
from tests.server.contract.test_spellings import data_url, drawn, post_json
from tests.server.running import EDITS, VARIATIONS, Server, assert_error, echo, until

I2I, RESPONSES, HF = "/sdapi/v1/img2img", "/v1/responses", "/hf"
LARGE = encoded(Image.effect_noise((700, 700), 90).convert("RGB"), "PNG", compress_level=0)
HOLE = encoded(Image.new("RGBA", (700, 700), (0, 0, 0, 0)), "PNG", compress_level=0)
BASE64 = base64.b64encode(LARGE).decode()
assert len(BASE64) > IN_FRONT_BYTES
ASKED = {"prompt": "a", "response_format": "b64_json", "size": "64x64", "seed": 136}
RESPONSE = {
    "tools": [{"type": "image_generation", "size": "64x64"}],
    "input": [
        {
            "content": [
                {"type": "input_text", "text": "a"},
                {"type": "input_image", "image_url": f"data:image/png;base64,{BASE64}"},
            ]
        }
    ],
}


def edit(server: Server, **fields: Any) -> dict[str, Any]:
    """What reaches the pipeline."""
    return drawn(post_json(server, json.dumps(ASKED | fields), EDITS))


@pytest.mark.fault(136)
@pytest.mark.parametrize(
    "write",
    [
        lambda: BASE64,
        lambda: BASE64.rstrip("="),
        lambda: BASE64.replace("+", "-").replace("/", "_"),
        lambda: quote(BASE64),
        lambda: re.sub("(.{76})", "\\1\r\n", BASE64),
        lambda: f" {BASE64}",
    ],
)
def test_however_it_is_written(echo_server: Server, write: Callable[[], str]) -> None:
    url = f"data:image/png;base64,{write()}"
    assert edit(echo_server, image=url)["image"] == digest(LARGE)
    escaped = json.dumps(ASKED | {"images": [{"image_url": url}]}).replace("/", "\\/")
    assert drawn(post_json(echo_server, b"\xef\xbb\xbf" + escaped.encode(), EDITS))["image"] == digest(LARGE)


@pytest.mark.fault(136)
def test_by_every_door(echo_server: Server) -> None:
    masked = edit(echo_server, image=data_url(LARGE), mask={"image_url": data_url(HOLE)})
    assert (masked["image"], masked["mask"]) == (digest(LARGE), digest(HOLE, "mask"))
    varied = {"image": data_url(LARGE), "response_format": "b64_json", "size": "64x64"}
    assert drawn(post_json(echo_server, json.dumps(varied), VARIATIONS))["image"] == digest(LARGE)
    webui = {"prompt": "a", "width": 64, "height": 64}
    for text in (BASE64, data_url(LARGE)):
        answer = post_json(echo_server, json.dumps({**webui, "init_images": [text]}), I2I)
        assert echo({"b64_json": answer.json()["images"][0]})["image"] == digest(LARGE)
        sent = json.dumps({"inputs": text, "parameters": {"prompt": "a", "target_size": {"width": 64, "height": 64}}})
        answer = post_json(echo_server, sent, HF)
        assert echo({"b64_json": base64.b64encode(answer.content).decode()})["image"] == digest(LARGE)
    answer = post_json(echo_server, json.dumps(RESPONSE), RESPONSES)
    assert echo({"b64_json": answer.json()["output"][0]["result"]})["image"] == digest(LARGE)


@pytest.mark.fault(136)
@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"image": data_url(LARGE) + "!"}, 400, "invalid_image", "image"),
        ({"image": data_url(LARGE), "mask": data_url(HOLE)[:-9] + "=abcdefgh"}, 400, "invalid_mask", "mask"),
        ({"image": data_url(b"junk" * 200_000)}, 400, "invalid_image", "image"),
        ({"image": BASE64}, 400, "unsupported_value", "image"),
        ({"image": "https://127.0.0.1:1/" + "a" * IN_FRONT_BYTES}, 400, "unsupported_value", "image"),
        ({"image": "data:image/png," + BASE64}, 400, "invalid_image", "image"),
        ({"image": data_url(LARGE), "prompt": "a" * 40_000}, 400, "string_above_max_length", "prompt"),
        ({"image": data_url(LARGE), "prompt": data_url(LARGE)}, 400, "string_above_max_length", "prompt"),
        ({"image": data_url(LARGE), "prompt": "a\ud800" * LONGEST_TEXT}, 400, "invalid_value", "prompt"),
        ({"image": data_url(LARGE), "n": 0}, 400, "invalid_value", "n"),
        (
            {"image": data_url(LARGE), "a": ["a" * 30_000] * (LARGEST_REST // 29_000)},
            413,
            "request_too_large",
            None,
        ),
        ({"image": data_url(LARGE), "a": [[[]] * 5000] * 2}, 400, "invalid_json", None),
    ],
)
def test_what_is_wrong_is_named(
    echo_server: Server, fields: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    assert_error(post_json(echo_server, json.dumps(ASKED | fields), EDITS), status, code, param)


@pytest.mark.fault(137)
def test_the_front_never_holds_them(echo_server: Server) -> None:
    edit(echo_server, image=data_url(LARGE))
    before = peak_mb(echo_server.process.pid)
    pixels = encoded(Image.effect_noise((4000, 3000), 90).convert("RGB"), "PNG", compress_level=0)
    body = json.dumps(ASKED | {"image": data_url(pixels)}).encode()
    assert len(body) > 40e6
    assert drawn(post_json(echo_server, body, EDITS))["image"] == digest(pixels)
    assert peak_mb(echo_server.process.pid) - before < 12, "one piece of it at a time"


@pytest.mark.fault(137)
def test_a_process_that_ends_between_is_replaced(server: Server) -> None:
    """Killed again and again while bodies are read."""
    body = json.dumps(ASKED | {"images": [data_url(LARGE)]})
    assert post_json(server, body, EDITS).status_code == 200
    worker = worker_pid(server)
    for _ in range(5):
        for pid in children(server.process.pid) - {worker}:
            os.kill(pid, signal.SIGKILL)
        until(lambda: children(server.process.pid) == {worker})
        assert post_json(server, body, EDITS).status_code == 200


def peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) / 1000
