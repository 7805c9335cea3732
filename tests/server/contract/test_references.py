"""POST /v1/images/edits and /variations of a model that draws by pictures: how many, in which order, at which size."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from fluxserve.input_images import shrink_image
from fluxserve.server.contract.multipart import MOST_FILES
from fluxserve.sizes import Box
from tests.reliability.answers import assert_answer
from tests.server import running
from tests.server.conftest import StartServer
from tests.server.reading_worker import RULE
from tests.server.running import EDITS, VARIATIONS, Server, assert_error, echo, png

READING_WORKER = "tests.server.reading_worker"
CLEAR = (9, 9, 9, 0)
FIELDS = {"prompt": "a hat on a cat", "response_format": "b64_json"}
SIZES = [(100, 70), (300, 200), (64, 64), (90, 200)]
READ = [(96, 64), (144, 96), (64, 64), (80, 176)]
"""At most 128 x 128 pixels in all, cut to multiples of 16."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = running.start([], tmp_path_factory.mktemp("reading"), READING_WORKER).wait_ready()
    yield server
    assert server.stop() == 0, server.log.read_text()


def pictures(count: int = 4) -> list[bytes]:
    return [png(*size, color=(50 * i, 10, 20)) for i, size in enumerate(SIZES[:count])]


def edit(server: Server, *files: tuple[str, bytes], path: str = EDITS, **fields: str) -> dict[str, Any]:
    """The request that reached the pipeline."""
    response = server.send_form(path, {**FIELDS, **fields}, list(files))
    assert response.status_code == 200, response.text
    return echo(response.json()["data"][0])


def read(data: bytes) -> str:
    """The digest of a file as a reference, small."""
    picture, _ = shrink_image(data, "image", Box(None, 0, 0, 10**9, RULE).of_references)
    return hashlib.sha256(picture.data).hexdigest()


def drawn(data: bytes, size: tuple[int, int], part: int = 0) -> str:
    """The digest of a picture (part 0), or of what of it is transparent (1), at the size drawn."""
    return hashlib.sha256(shrink_image(data, "image", Box(size, 0, 0, 10**9, RULE))[part].data).hexdigest()


@pytest.mark.behaviour(100)
@pytest.mark.parametrize("names", [("image",) * 4, ("image[]",) * 4, ("image", "image[]", "images[2]", "image[]")])
def test_pictures_reach_the_model_in_order(server: Server, names: tuple[str, ...]) -> None:
    sent = pictures()
    request = edit(server, *zip(names, sent, strict=True))
    assert [each["data"] for each in request["references"]] == [read(data) for data in sent]
    assert [(each["width"], each["height"]) for each in request["references"]] == READ
    assert (request["image"], request["mask"], request["strength"]) == (None, None, 1.0)


@pytest.mark.behaviour(100)
def test_pictures_in_json(server: Server) -> None:
    sent = pictures(2)
    urls = [{"image_url": f"data:image/png;base64,{base64.b64encode(data).decode()}"} for data in sent]
    response = server.request("POST", EDITS, json={**FIELDS, "images": urls})
    assert response.status_code == 200, response.text
    request = echo(response.json()["data"][0])
    assert [each["data"] for each in request["references"]] == [read(data) for data in sent]


@pytest.mark.fault(100)
@pytest.mark.behaviour(100)
@pytest.mark.parametrize("count", [5, 16, 17, 40])
def test_one_too_many_is_refused_by_name_before_decoding(server: Server, count: int) -> None:
    files = [("image[]", b"not even a picture")] * count
    for sent in (files, [*files, ("mask", b"nor this")]):
        response = server.send_form(EDITS, FIELDS, sent)
        assert_answer(100, response)
        error = assert_error(response, 400, "too_many_images", "image")
        assert "at most" in error["message"]
        assert len(sent) > MOST_FILES or f"at most 4 images (--max-input-images), got {count}" in error["message"]
    one = server.send_form(VARIATIONS, {}, files[:2])
    assert_error(one, 400, "too_many_images", "image")


@pytest.mark.behaviour(100)
def test_the_model_tells_how_many(server: Server, echo_server: Server) -> None:
    for each, most in ((server, 4), (echo_server, 1)):
        assert each.get("/v1/models").json()["data"][0]["limits"]["max_input_images"] == most


@pytest.mark.behaviour(101)
def test_auto_is_the_first_ones_size(server: Server) -> None:
    def size(*sizes: tuple[int, int], **fields: str) -> tuple[int, int]:
        request = edit(server, *(("image[]", png(*each)) for each in sizes), **fields)
        return request["width"], request["height"]

    assert size((300, 200)) == size((300, 200), (64, 64), size="auto") == (144, 96)
    assert size((70, 100), (300, 200)) == (64, 96), "never enlarged"
    assert size((300, 200), (64, 64), size="128x64") == (128, 64)


@pytest.mark.behaviour(101)
def test_a_limit_on_pixels_is_kept_by_auto_and_not_by_references(start_server: StartServer) -> None:
    server = start_server("--max-pixels", "8192", worker=READING_WORKER)
    request = edit(server, ("image", png(300, 200)))
    assert request["width"] * request["height"] <= 8192
    assert (request["references"][0]["width"], request["references"][0]["height"]) == (144, 96)


@pytest.mark.fault(101)
@pytest.mark.behaviour(101)
@pytest.mark.parametrize("size", [(63, 64), (64, 513), (2000, 70)])
def test_what_the_model_cannot_read_is_refused(server: Server, size: tuple[int, int]) -> None:
    error = assert_error(server.send_form(EDITS, FIELDS, [("image", png(*size))]), 400, "invalid_image", "image")
    assert f"{size[0]}x{size[1]}" in error["message"]
    second = [("image", png()), ("image", png(*size))]
    assert_answer(101, server.send_form(EDITS, FIELDS, second))
    masked = [("image", png(70, 70)), ("mask", png(*size, CLEAR, "RGBA"))]
    assert_answer(101, server.send_form(EDITS, FIELDS, masked))


@pytest.mark.behaviour(101)
def test_the_longest_picture_is_read(server: Server) -> None:
    request = edit(server, ("image", png(4000, 500)), size="64x64")
    assert [(each["width"], each["height"]) for each in request["references"]] == [(352, 64)]


@pytest.mark.behaviour(102)
@pytest.mark.parametrize(("asked", "size"), [({}, (144, 96)), ({"size": "64x128"}, (64, 128))])
def test_a_mask_belongs_to_the_first(server: Server, asked: dict[str, str], size: tuple[int, int]) -> None:
    first, second, mask = png(300, 200, (200, 30, 30)), png(80, 80), png(300, 200, CLEAR, "RGBA")
    request = edit(server, ("image[]", first), ("mask", mask), ("image[]", second), **asked)
    assert [each["data"] for each in request["references"]] == [read(first), read(second)]
    assert (request["image"], request["mask"]) == (drawn(first, size), drawn(mask, size, 1))
    assert request["strength"] == 1.0


@pytest.mark.behaviour(102, 130)
def test_a_white_mask_is_one_that_is_transparent_there(server: Server) -> None:
    image, white, black = png(300, 200), png(300, 200, (255, 255, 255)), png(300, 200, (0, 0, 0))
    request = edit(server, ("image", image), ("mask", white), size="64x64", mask_mode="white")
    assert request["mask"] == drawn(png(300, 200, CLEAR, "RGBA"), (64, 64), 1)
    answer = server.send_form(EDITS, FIELDS | {"mask_mode": "white"}, [("image", image), ("mask", black)])
    assert_error(answer, 400, "invalid_mask", "mask")


@pytest.mark.behaviour(102)
def test_a_mask_that_fits_another_picture_is_refused(server: Server) -> None:
    for mask in (png(80, 80, CLEAR, "RGBA"), png(8, 8, CLEAR, "RGBA"), png(300, 200), b"junk"):
        files = [("image[]", png(300, 200)), ("image[]", png(80, 80)), ("mask", mask)]
        assert_error(server.send_form(EDITS, FIELDS, files), 400, "invalid_mask", "mask")


@pytest.mark.behaviour(102)
def test_transparency_is_a_mask_where_a_picture_comes_alone(server: Server) -> None:
    cut_out = png(300, 200, CLEAR, "RGBA")
    alone = edit(server, ("image", cut_out), size="64x64")
    assert (alone["image"], alone["mask"]) == (drawn(cut_out, (64, 64)), drawn(cut_out, (64, 64), 1))
    together = edit(server, ("image", cut_out), ("image", png()))
    assert (together["image"], together["mask"]) == (None, None)


@pytest.mark.fault(102)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_damaged_picture_among_others(server: Server, place: int) -> None:
    for bad in (b"", b"junk", png()[:-60]):
        files = [("image[]", bad if i == place else png()) for i in range(4)]
        response = server.send_form(EDITS, {**FIELDS, "seed": "102"}, files)
        assert_answer(102, response)
        assert_error(response, 400, "invalid_image", "image")
    assert server.count("begin", 102) == 0


@pytest.mark.behaviour(22)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_content_filter_sees_every_picture(start_server: StartServer, place: int) -> None:
    server = start_server("--content-filter", "tests.server.content_filters:no_red", worker=READING_WORKER)
    colors = [(255, 0, 0) if i == place else (0, 0, 255) for i in range(3)]
    response = server.send_form(EDITS, FIELDS, [("image[]", png(color=color)) for color in colors])
    assert_error(response, 400, "content_policy_violation", "prompt")
    blue = server.send_form(EDITS, FIELDS, [("image[]", png(color=(0, 0, 255)))] * 3)
    assert blue.status_code == 200


@pytest.mark.fault(104)
def test_the_worker_dies_while_it_draws_by_pictures(start_server: StartServer) -> None:
    server = start_server(worker=READING_WORKER)
    sent = pictures(2)
    fields = {**FIELDS, "prompt": "a cat [exit:step2:once]", "seed": "104"}
    response = server.send_form(EDITS, fields, [("image[]", data) for data in sent])
    assert_answer(104, response)
    request = echo(response.json()["data"][0])
    assert [each["data"] for each in request["references"]] == [read(data) for data in sent]
    assert server.count("begin", 104) == 2


@pytest.mark.behaviour(103)
def test_strength_means_nothing_and_is_warned_of(server: Server) -> None:
    fields = {**FIELDS, "strength": "0.3", "input_fidelity": "high"}
    response = server.send_form(EDITS, fields, [("image", png())])
    assert echo(response.json()["data"][0])["strength"] == 1.0
    warnings = response.headers["x-fluxserve-warning"].split(", ")
    assert {"ignored:strength", "ignored:input_fidelity"} <= set(warnings)


@pytest.mark.behaviour(103)
def test_a_variation_is_an_edit_without_words(server: Server) -> None:
    cut_out = png(300, 200, CLEAR, "RGBA")
    request = edit(server, ("image", cut_out), path=VARIATIONS)
    assert [each["data"] for each in request["references"]] == [read(cut_out)]
    assert (request["prompt"], request["image"], request["mask"]) == ("", None, None)


@pytest.mark.fault(103)
@pytest.mark.behaviour(104)
def test_references_count_in_usage_work_and_memory(server: Server, start_server: StartServer) -> None:
    files = [("image[]", data) for data in pictures()]
    body = server.send_form(EDITS, FIELDS, files).json()
    tokens = sum(width * height // 256 for width, height in READ)
    assert body["usage"]["input_tokens_details"]["image_tokens"] == tokens
    pixels = 256 * tokens + 96 * 64
    for most, status in ((2 * pixels, 200), (2 * pixels - 1, 400)):
        limited = start_server("--max-work", str(most), worker=READING_WORKER)
        response = limited.send_form(EDITS, {**FIELDS, "steps": "2"}, files)
        assert response.status_code == status, response.text
    large = [("image[]", png(128, 128))] * 4
    assert server.send_form(EDITS, {**FIELDS, "size": "256x128"}, large).status_code == 200
    response = server.send_form(EDITS, {**FIELDS, "size": "256x144"}, large)
    assert_answer(103, response)
    error = assert_error(response, 400, "invalid_size", "size")
    assert "128x128" in error["message"]
    assert "--memory-budget" in error["message"]


@pytest.mark.behaviour(100)
def test_streams(server: Server) -> None:
    fields = {"prompt": "a hat on a cat", "stream": "true", "partial_images": "1"}
    response = server.send_form(EDITS, fields, [("image[]", data) for data in pictures(2)])
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert len(echo(events[-1])["references"]) == 2
