"""Stable Diffusion WebUI's API, by webuiapi, and as other programs send it."""

from __future__ import annotations

import base64
import io
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import webuiapi
from PIL import Image

from scripts.endurance.servers import rss_mb
from tests.fake_pipeline import expected_pixels
from tests.server.conftest import StartServer
from tests.server.running import REAL_WORKER, Server, picture, png, until

T2I, I2I = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"


def api_of(server: Server) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1", sampler="Euler", steps=4)


def post(server: Server, path: str, **fields: Any) -> httpx.Response:
    return server.request("POST", path, json=fields)


def bare(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.behaviour(155)
def test_webuiapi_draws(server: Server) -> None:
    result = api_of(server).txt2img(prompt="a cat", seed=155001, width=64, height=64, batch_size=2, steps=3)
    for at, image in enumerate(result.images):
        assert np.array_equal(np.asarray(image.convert("RGB")), expected_pixels(155001 + at, 64, 64))
    info = result.info
    assert (info["seed"], info["all_seeds"]) == (155001, [155001, 155002])
    assert info["infotexts"][1] == (
        "a cat\nSteps: 3, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Seed: 155002, Size: 64x64, "
        "Model: fluxserve/fake"
    )
    assert result.parameters["prompt"] == "a cat"


@pytest.mark.behaviour(155)
def test_webuiapi_edits(server: Server) -> None:
    source = Image.open(io.BytesIO(png(128, 64)))
    result = api_of(server).img2img(images=[source], prompt="a dog", seed=155003, width=128, height=64)
    assert np.array_equal(np.asarray(result.image.convert("RGB")), expected_pixels(155003, 128, 64))
    assert result.info["denoising_strength"] == 0.75
    varied = post(server, I2I, init_images=["data:image/png;base64," + bare(png())], seed=7)
    assert picture(varied.json()["images"][0]).shape == (64, 64, 3)


@pytest.mark.behaviour(155)
def test_the_white_of_a_mask_is_redrawn_or_inverted_its_black(start_server: StartServer) -> None:
    """The rest of the picture stays as it was. The demo model draws."""
    server = start_server(worker=REAL_WORKER)
    for inverted in (0, 1):
        changed = _changed(server, inverted)
        white, black = changed[:, :128], changed[:, 128:]
        redrawn, kept = (black[:, 16:], white[:, :112]) if inverted else (white[:, :112], black[:, 16:])
        assert redrawn.mean() > 0.5
        assert not kept.any()


def _changed(server: Server, inverted: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where an edit of a plain picture changed it, with a mask whose left half is white."""
    picture_sent = Image.open(io.BytesIO(png(256, 256, (30, 90, 200))))
    mask = Image.new("L", (256, 256), 0)
    mask.paste(255, (0, 0, 128, 256))
    result = api_of(server).img2img(
        images=[picture_sent],
        mask_image=mask,
        inpainting_mask_invert=inverted,
        prompt="a red apple",
        denoising_strength=1.0,
        width=256,
        height=256,
        seed=7,
    )
    return np.asarray((np.asarray(result.image.convert("RGB")) != (30, 90, 200)).any(axis=2))


@pytest.mark.behaviour(155)
def test_webuiapi_lists_and_sets(server: Server) -> None:
    api = api_of(server)
    assert [model["title"] for model in api.get_sd_models()] == ["fluxserve/fake"]
    assert [sampler["name"] for sampler in api.get_samplers()] == ["Euler"]
    assert [each["label"] for each in api.get_schedulers()] == ["Simple"]
    assert api.get_loras() == api.get_sd_vae() == api.get_embeddings() == []
    assert [each["name"] for each in api.get_upscalers()] == ["None"]
    assert api.get_options()["sd_model_checkpoint"] == "fluxserve/fake"
    assert api.set_options({"sd_model_checkpoint": "fake"}) is None
    assert post(server, "/sdapi/v1/options", sd_model_checkpoint="sdxl").status_code == 404
    assert post(server, "/sdapi/v1/options", eta=1).headers["x-fluxserve-warning"] == "ignored:eta"


@pytest.mark.behaviour(155)
def test_png_info(server: Server) -> None:
    image = post(server, T2I, prompt="a cat", seed=155004).json()["images"][0]
    told = post(server, "/sdapi/v1/png-info", image="data:image/png;base64," + image).json()
    assert told["items"] == {"prompt": "a cat", "seed": "155004"}
    assert told["info"] == "a cat\nSampler: Euler, Seed: 155004"
    foreign = io.BytesIO()
    chunks = __import__("PIL.PngImagePlugin", fromlist=["PngInfo"]).PngInfo()
    chunks.add_itxt("parameters", "ein Löwe\nSteps: 4", zip=True)
    Image.new("RGB", (8, 8)).save(foreign, "PNG", pnginfo=chunks)
    assert post(server, "/sdapi/v1/png-info", image=bare(foreign.getvalue())).json()["info"] == "ein Löwe\nSteps: 4"
    for data in (b"no png", png()[:20], b""):
        assert post(server, "/sdapi/v1/png-info", image=bare(data)).status_code in (200, 400)


@pytest.mark.fault(86)
def test_texts_that_grow_have_a_bound(server: Server) -> None:
    text = zlib.compress(b"a" * 2**20, 9)
    sent, at = png(), 33  # where the first chunk ends
    chunks = b"".join(chunk(b"iTXt", b"k%d\0\1\0\0\0" % number + text) for number in range(200))
    before = rss_mb(server.process.pid)
    answer = post(server, "/sdapi/v1/png-info", image=bare(sent[:at] + chunks + sent[at:]))
    assert answer.status_code == 200
    assert sum(map(len, answer.json()["items"].values())) == 2**20
    assert len(answer.content) < 5 * 2**20
    assert rss_mb(server.process.pid) - before < 60
    long = chunk(b"tEXt", b"Comment\0" + b"b" * 2**19)
    told = post(server, "/sdapi/v1/png-info", image=bare(sent[:at] + long * 4 + sent[at:])).json()
    assert 0 < len(told["items"]["Comment"]) <= 2**19


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.fault(88)
@pytest.mark.parametrize("fields", [{"n_iter": -1, "batch_size": -1}, {"n_iter": 0}, {"batch_size": -2, "n_iter": -2}])
def test_counts_are_positive(server: Server, fields: dict[str, int]) -> None:
    refused = post(server, T2I, prompt="a cat", seed=88, **fields)
    assert refused.status_code == 400
    assert "must be at least 1" in refused.json()["errors"]
    assert server.count("begin", 88) == 0


@pytest.mark.behaviour(155)
def test_progress_and_interrupt(server: Server) -> None:
    api = api_of(server)
    assert api.get_progress()["progress"] == 0
    with ThreadPoolExecutor() as pool:
        fields = {"prompt": "a cat [slow:step:0.2]", "steps": 100, "seed": 155005}
        drawing = pool.submit(post, server, T2I, **fields)
        until(lambda: api.get_progress()["state"]["sampling_step"] >= 2)
        state = api.get_progress()
        assert 0 < state["progress"] < 1
        assert state["eta_relative"] > 0
        assert state["state"]["sampling_steps"] == 100
        began = time.monotonic()
        api.interrupt()
        refused = drawing.result(10)
        assert time.monotonic() - began < 5
    assert refused.status_code == 500
    assert refused.json()["detail"] == "the request was cancelled"
    assert api.get_progress()["state"]["job_count"] == 0


@pytest.mark.behaviour(157)
def test_what_cannot_act_is_warned_of(server: Server) -> None:
    fields = {
        "prompt": "a cat",
        "sampler_name": "DPM++ 2M",
        "scheduler": "Karras",
        "enable_hr": True,
        "restore_faces": True,
        "styles": ["x"],
        "tiling": False,
        "width": 100,
        "height": 64,
        "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_model_checkpoint": "fake"},
        "alwayson_scripts": {"controlnet": {}},
    }
    told = set(post(server, T2I, **fields).headers["x-fluxserve-warning"].split(", "))
    assert told == {
        "rounded:size",
        "ignored:sampler_name",
        "ignored:scheduler",
        "ignored:enable_hr",
        "ignored:restore_faces",
        "ignored:styles",
        "ignored:alwayson_scripts",
        "ignored:override_settings.CLIP_stop_at_last_layers",
    }
    quiet = api_of(server).txt2img(prompt="a cat", width=64, height=64, cfg_scale=1)
    assert quiet.image.size == (64, 64)


@pytest.mark.behaviour(155, 157)
def test_guidance_as_in_forge(echo_server: Server) -> None:
    import json

    def request_of(**fields: Any) -> dict[str, Any]:
        image = post(echo_server, T2I, prompt="a cat", **fields).json()["images"][0]
        drawn: dict[str, Any] = json.loads(Image.open(io.BytesIO(base64.b64decode(image))).info["request"])
        return drawn

    alone = request_of(cfg_scale=7)
    assert (alone["guidance_scale"], alone["true_cfg_scale"]) == (7, 1)
    both = request_of(cfg_scale=2, distilled_cfg_scale=3, negative_prompt="a dog")
    assert (both["guidance_scale"], both["true_cfg_scale"], both["negative_prompt"]) == (3, 2, "a dog")


@pytest.mark.behaviour(156, 157)
@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        (T2I, {}, "prompt is required"),
        (T2I, {"prompt": "a cat", "steps": 900}, "steps must be an integer from 1 to 200, got 900"),
        (T2I, {"prompt": "a cat", "batch_size": 4, "n_iter": 4}, "n must be an integer from 1 to 10, got 16"),
        (T2I, {"prompt": "a cat", "batch_size": "4"}, "batch_size must be an integer"),
        (T2I, {"prompt": "a cat <lora:nothing:0.5>"}, "there is no LoRA 'nothing'"),
        (T2I, {"prompt": "a cat", "override_settings": {"sd_model_checkpoint": "sdxl"}}, "is not served here"),
        (I2I, {"prompt": "a cat"}, "image is required"),
        (I2I, {"prompt": "a cat", "init_images": ["http://evil.example/a.png"]}, "base64 or a data: URL"),
        (I2I, {"prompt": "a cat", "init_images": [7]}, "base64 or a data: URL"),
        (I2I, {"prompt": "a cat", "init_images": ["AAAA"]}, "PNG, JPEG or WebP"),
        (I2I, {"init_images": [bare(png())], "mask": "AA", "inpainting_mask_invert": "1"}, "invert must be 0 or 1"),
        (I2I, {"init_images": [bare(png())], "mask": bare(png()), "inpainting_mask_invert": [1]}, "must be 0 or 1"),
        (
            I2I,
            {
                "prompt": "x",
                "init_images": [bare(png())],
                "mask": bare(png(64, 64, (255, 255, 255))),
                "inpainting_mask_invert": True,
            },
            "nothing would change",
        ),
        (I2I, {"prompt": "a cat", "init_images": [bare(png())], "mask": bare(png(64, 64, (0, 0, 0)))}, "mask"),
        (I2I, {"prompt": "a cat", "init_images": [bare(png())], "mask": bare(png(32, 32))}, "the image's size 64x64"),
    ],
)
def test_refusals_have_its_shape_and_our_words(server: Server, path: str, fields: dict[str, Any], words: str) -> None:
    answer = post(server, path, **fields)
    assert answer.status_code in (400, 404)
    assert answer.json().keys() == {"error", "detail", "body", "errors"}
    assert words in answer.json()["detail"]


@pytest.mark.behaviour(155, 156)
def test_keys_as_passwords_and_the_option(start_server: StartServer) -> None:
    server = start_server("--api-key", "sesame")
    api = api_of(server)
    with pytest.raises(RuntimeError, match="API key is missing or wrong"):
        api.txt2img(prompt="a cat", width=64, height=64)
    api.set_auth("anybody", "sesame")
    assert api.txt2img(prompt="a cat", width=64, height=64).image.size == (64, 64)
    basic = {"authorization": "Basic " + bare(b"anybody:sesame")}
    assert server.get("/v1/models", headers=basic).status_code == 401, "there alone"
    closed = start_server("--no-sdapi")
    assert post(closed, T2I, prompt="a cat").status_code == 404


@pytest.mark.behaviour(155)
def test_sillytavern_and_open_webui(server: Server) -> None:
    """As SillyTavern 1.13 (src/endpoints/stable-diffusion.js) and Open WebUI 0.6 (routers/images.py) send it."""
    silly = {
        "prompt": "a cat",
        "negative_prompt": "",
        "sampler_name": "Euler",
        "scheduler": "Automatic",
        "steps": 4,
        "cfg_scale": 1,
        "width": 64,
        "height": 64,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 1.5,
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 0,
        "seed": -1,
        "override_settings": {},
        "override_settings_restore_afterwards": True,
        "clip_skip": 1,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
    }
    answer = post(server, T2I, **silly)
    assert answer.headers["x-fluxserve-warning"] == "ignored:clip_skip, ignored:guidance_scale"
    assert picture(answer.json()["images"][0]).shape == (64, 64, 3)
    open_webui = {"prompt": "a cat", "batch_size": 1, "width": 512, "height": 512}
    assert {"images", "info"} <= post(server, T2I, **open_webui).json().keys()
