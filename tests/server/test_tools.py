"""FLUX.1's tools over HTTP: tiny random weights behind the real worker, asked by the openai client."""

from __future__ import annotations

import base64
import io
import os
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from openai import APITimeoutError, BadRequestError, OpenAI
from PIL import Image
from safetensors.torch import save_file

from tests.conftest import MakeCheckpoint
from tests.loras import low_rank
from tests.pipeline.test_redux import write_redux
from tests.server import running
from tests.server.running import Server, until, worker_of
from tests.weights.lora.test_control import control_lora

TOOLS = ("fill", "canny", "depth", "redux", "canny-lora")
WIDTH, HEIGHT = 96, 64
MASKED = np.s_[16:48, 40:96]


@pytest.fixture(scope="module", params=TOOLS)
def tool(
    request: pytest.FixtureRequest, tiny_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Server]]:
    loras = tmp_path_factory.mktemp("loras")
    save_file(low_rank(("lora_unet_double",), "lora_down", "lora_up"), loras / "style.safetensors")
    name = request.param.removesuffix("-lora")
    model = "dev" if request.param in ("redux", "canny-lora") else name
    flags = [str(tiny_checkpoint(model)), "--dtype", "float32", "--lora-dir", str(loras)]
    if request.param == "redux":
        flags += ["--redux", str(write_redux(tmp_path_factory.mktemp("redux") / "redux"))]
    elif request.param == "canny-lora":
        control = tmp_path_factory.mktemp("control") / "flux1-canny-dev-lora.safetensors"
        save_file(control_lora(), control)
        flags += ["--lora", str(control)]
    server = running.start(flags, tmp_path_factory.mktemp(request.param), running.REAL_WORKER).wait_ready()
    yield name, server
    assert server.stop() == 0, server.log.read_text()


def client_of(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def photo() -> Image.Image:
    """Colours with a bright square in the middle."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    square = (abs(x - WIDTH // 2) < 20) & (abs(y - HEIGHT // 2) < 20)
    return Image.fromarray(np.stack([2 * x, 3 * y, np.where(square, 255, 20)], axis=-1).astype(np.uint8))


def mask() -> bytes:
    alpha = np.full((HEIGHT, WIDTH, 4), 255, np.uint8)
    alpha[MASKED] = 0
    return png(Image.fromarray(alpha))


def fields(name: str, **extra: Any) -> dict[str, Any]:
    """Of an edit, with what each tool needs."""
    asked = {"image": png(photo()), "prompt": "a red cat", "response_format": "b64_json"}
    given = {"mask": mask()} if name == "fill" else {}
    own = {"redux": [1.0]} if name == "redux" else {}
    return asked | given | {"extra_body": {"seed": 7, "steps": 3, "size": f"{WIDTH}x{HEIGHT}", **own, **extra}}


def drawn(answer: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))).convert("RGB"), dtype=int)


@pytest.mark.behaviour(170)
def test_an_edit_is_drawn_from_its_picture(tool: tuple[str, Server]) -> None:
    name, server = tool
    picture = drawn(client_of(server).images.edit(**fields(name)))
    assert picture.shape == (HEIGHT, WIDTH, 3)
    other = fields(name) | {"image": png(Image.new("RGB", (WIDTH, HEIGHT), "navy"))}
    assert np.abs(picture - drawn(client_of(server).images.edit(**other)))[MASKED].max() > 2


@pytest.mark.behaviour(171)
def test_outside_the_mask_every_pixel_stays(tool: tuple[str, Server]) -> None:
    name, server = tool
    if name != "fill":
        pytest.skip("draws all of a picture")
    original = np.asarray(photo(), dtype=int)
    kept = np.ones((HEIGHT, WIDTH), bool)
    kept[MASKED] = False
    for sent in (fields(name), fields(name, steps=1, seed=8), fields(name, strength=0.6)):
        picture = drawn(client_of(server).images.edit(**sent))
        assert np.array_equal(picture[kept], original[kept])
        assert np.abs(picture - original)[MASKED].mean() > 10


@pytest.mark.behaviour(172)
def test_a_larger_canvas_with_transparent_borders_is_filled(tool: tuple[str, Server]) -> None:
    name, server = tool
    if name != "fill":
        pytest.skip("draws all of a picture")
    canvas = Image.new("RGBA", (WIDTH + 64, HEIGHT + 32), (0, 0, 0, 0))
    canvas.paste(photo(), (32, 16))
    sent = fields(name, size="auto") | {"image": png(canvas)}
    del sent["mask"]
    picture = drawn(client_of(server).images.edit(**sent))
    assert picture.shape == (HEIGHT + 32, WIDTH + 64, 3)
    assert np.array_equal(picture[16:-16, 32:-32], np.asarray(photo(), dtype=int))
    assert picture[:16].std() > 5


@pytest.mark.behaviour(173)
def test_a_map_is_made_of_a_photo(tool: tuple[str, Server]) -> None:
    name, server = tool
    cv2 = pytest.importorskip("cv2")
    edges = np.repeat(cv2.Canny(np.asarray(photo()), 50, 200)[:, :, None], 3, axis=2)
    if name == "canny":
        made = drawn(client_of(server).images.edit(**fields(name, control="canny")))
        given = drawn(client_of(server).images.edit(**fields(name) | {"image": png(Image.fromarray(edges))}))
        assert np.array_equal(made, given)
        assert np.abs(made - drawn(client_of(server).images.edit(**fields(name)))).max() > 2
    else:
        with pytest.raises(BadRequestError) as refused:
            client_of(server).images.edit(**fields(name, control="canny"))
        assert refused.value.param == "control"


@pytest.mark.behaviour(174)
def test_what_it_does_not_serve_is_refused_and_the_models_list_tells_it(tool: tuple[str, Server]) -> None:
    name, server = tool
    client = client_of(server)
    (model,) = client.models.list().data
    told = model.model_dump()
    own = {"fill": ["edits", "masks"], "redux": ["generations", "edits", "masks", "variations", "redux"]}
    assert told["capabilities"] == [*own.get(name, ["edits"]), "stream"]
    guidance, steps = {"depth": (10.0, 50), "redux": (3.5, 28)}.get(name, (30.0, 50))
    assert (told["defaults"]["guidance_scale"], told["defaults"]["steps"]["medium"]) == (guidance, steps)
    if name == "redux":
        with pytest.raises(BadRequestError) as refused:
            client.images.edit(**fields(name, redux=[1.0, 2.0]))
        assert refused.value.param == "redux"
        return
    for ask, param in (
        (lambda: client.images.generate(prompt="a cat"), "image"),
        (lambda: client.images.edit(image=png(photo()), prompt="a cat"), "mask" if name == "fill" else None),
        (
            lambda: client.images.edit(image=png(photo()), mask=mask(), prompt="a cat"),
            None if name == "fill" else "mask",
        ),
    ):
        if param is not None:
            with pytest.raises(BadRequestError) as refused:
                ask()
            assert refused.value.param == param


@pytest.mark.behaviour(89)
def test_a_mask_that_cannot_act_is_refused(tool: tuple[str, Server]) -> None:
    name, server = tool
    if name == "fill":
        pytest.skip("takes masks")
    client, clear = client_of(server), photo().convert("RGBA")
    clear.putpixel((1, 1), (0, 0, 0, 0))
    for picture in (photo(), clear):
        with pytest.raises(BadRequestError) as refused:
            client.images.edit(**fields(name) | {"image": png(picture), "mask": mask()})
        assert (refused.value.param, refused.value.code) == ("mask", "unsupported_value")
    assert drawn(client.images.edit(**fields(name) | {"image": png(clear)})).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.behaviour(178)
def test_redux_varies_a_picture_and_weighs_several(tool: tuple[str, Server]) -> None:
    name, server = tool
    client = client_of(server)
    if name != "redux":
        with pytest.raises(BadRequestError) as refused:
            client.images.edit(**fields(name, redux=[1.0]))
        assert refused.value.param == "redux"
        return
    asked = {"response_format": "b64_json", "extra_body": {"seed": 3, "steps": 3}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pictures = (photo(), Image.new("RGB", (WIDTH, HEIGHT)))
        varied = [drawn(client.images.create_variation(image=png(picture), **asked)) for picture in pictures]
    assert varied[0].shape == (HEIGHT, WIDTH, 3)
    assert np.abs(varied[0] - varied[1]).max() > 2
    two = [png(photo()), png(Image.new("RGB", (64, 128), "navy"))]
    weighed = [drawn(client.images.edit(**fields(name, redux=w) | {"image": two})) for w in ([1.0, 0.2], [0.2, 1.0])]
    assert np.abs(weighed[0] - weighed[1]).max() > 2


@pytest.mark.behaviour(175)
def test_previews_show_what_is_being_drawn(tool: tuple[str, Server]) -> None:
    name, server = tool
    events = list(client_of(server).images.edit(**fields(name), stream=True, partial_images=2))
    assert [event.type for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    seen = [np.asarray(Image.open(io.BytesIO(base64.b64decode(event.b64_json))), dtype=int) for event in events]
    assert np.abs(seen[0] - seen[-1]).max() > 2
    if name == "fill":
        assert np.array_equal(seen[0][:16], np.asarray(photo(), dtype=int)[:16])


@pytest.mark.behaviour(176)
def test_a_lora_of_the_blocks_acts(tool: tuple[str, Server]) -> None:
    name, server = tool
    plain = drawn(client_of(server).images.edit(**fields(name)))
    styled = drawn(client_of(server).images.edit(**fields(name, loras=["style"])))
    assert np.abs(plain - styled)[MASKED].max() > 2


@pytest.mark.behaviour(177)
def test_a_job_whose_client_leaves_is_stopped(tool: tuple[str, Server]) -> None:
    name, server = tool
    with pytest.raises(APITimeoutError):
        client_of(server).with_options(timeout=0.5).images.edit(**fields(name, steps=200) | {"n": 10})
    until(lambda: "fluxserve_requests_in_flight 0.0" in server.get("/metrics").text, 60)  # of 10 x 200 steps
    assert drawn(client_of(server).images.edit(**fields(name))).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.fault(150)
def test_a_worker_that_dies_in_mid_job_costs_no_request(tool: tuple[str, Server]) -> None:
    name, server = tool
    expected = drawn(client_of(server).images.edit(**fields(name, steps=12)))
    events = iter(client_of(server).images.edit(**fields(name, steps=12), stream=True, partial_images=3))
    first = next(events)
    assert first.type == "image_edit.partial_image"
    os.kill(worker_of(server), signal.SIGKILL)
    *_, last = events
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(last.b64_json))), dtype=int)
    assert np.array_equal(picture, expected)
