"""POST /v1/images/generations: what each parameter does, and what is refused before anything runs."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fake_pipeline import expected_pixels
from tests.server.conftest import StartServer
from tests.server.running import Server, assert_error, echo, picture

JPEG, WEBP = b"\xff\xd8", b"RIFF"


@pytest.mark.behaviour(1, 21)
def test_a_prompt_alone_gives_one_picture_of_the_default_size(server: Server) -> None:
    body = server.generate().json()
    assert isinstance(body["created"], int)
    assert (body["size"], body["quality"], body["output_format"], body["background"]) == (
        "64x64",
        "medium",
        "png",
        "opaque",
    )
    assert body["model"] == "fluxserve/fake"
    assert body["timings"]["steps"] == 4
    [item] = body["data"]
    assert item.keys() == {"url", "seed"}
    assert 0 <= item["seed"] < 2**32
    assert picture(server.get(item["url"]).content).shape == (64, 64, 3)


@pytest.mark.behaviour(2, 19)
def test_n_pictures_have_consecutive_seeds_and_the_pipelines_pixels(server: Server) -> None:
    body = server.generate(n=3, seed=41, response_format="b64_json", size="96x64").json()
    assert [item["seed"] for item in body["data"]] == [41, 42, 43]
    for item in body["data"]:
        assert np.array_equal(picture(item["b64_json"]), expected_pixels(item["seed"], 96, 64))
    assert body["usage"] == {
        "input_tokens": 2,
        "input_tokens_details": {"text_tokens": 2, "image_tokens": 0},
        "output_tokens": 3 * 6 * 4,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": 3 * 6 * 4},
        "total_tokens": 2 + 3 * 6 * 4,
    }


@pytest.mark.behaviour(69)
def test_the_safety_identifier_comes_back(server: Server) -> None:
    assert server.generate(safety_identifier="abc", user="me").json()["safety_identifier"] == "abc"
    for unsaid in ({}, {"safety_identifier": None}, {"safety_identifier": ""}):
        assert server.generate(user="me", **unsaid).json()["safety_identifier"] == "me"
    for unsaid in ({}, {"user": ""}, {"user": {"name": "me"}}):
        assert "safety_identifier" not in server.generate(**unsaid).json()


def test_seeds_wrap_at_the_end_and_zero_is_a_seed(server: Server) -> None:
    assert [item["seed"] for item in server.generate(seed=2**64 - 1, n=2).json()["data"]] == [2**64 - 1, 0]
    assert server.generate(seed=0).json()["data"][0]["seed"] == 0


EXTRAS: list[tuple[dict[str, Any], str, object]] = [
    ({"num_inference_steps": 7}, "num_inference_steps", 7),
    ({"steps": 7}, "num_inference_steps", 7),
    ({"extra_body": {"steps": 7}}, "num_inference_steps", 7),
    ({"steps": 7, "extra_body": {"steps": 9}}, "num_inference_steps", 7),
    ({"guidance_scale": 2}, "guidance_scale", 2.0),
    ({"guidance": 0}, "guidance_scale", 0.0),
    ({"extra_body": {"guidance": 2.5}}, "guidance_scale", 2.5),
    ({"negative_prompt": "fog", "true_cfg_scale": 2}, "negative_prompt", "fog"),
    ({"true_cfg_scale": 2.5}, "true_cfg_scale", 2.5),
    ({"seed": 9}, "seeds", [9]),
    ({"max_sequence_length": 77}, "max_sequence_length", 77),
    ({"width": 96, "height": 128}, "width", 96),
    ({"width": 96, "height": 128, "size": "auto"}, "height", 128),
    ({"prompt": "a\x01b\tc\n\x1fd"}, "prompt", "ab\tc\nd"),
    ({"prompt": "عربي \U0001f408 \u200b汉字"}, "prompt", "عربي \U0001f408 \u200b汉字"),
    ({"output_format": "PNG"}, "output_format", "png"),
    ({}, "solver", "euler"),
    ({"solver": "dpmpp2m"}, "solver", "dpmpp2m"),
    ({"extra_body": {"solver": "dpmpp2m"}}, "solver", "dpmpp2m"),
]


@pytest.mark.behaviour(5, 14)
@pytest.mark.parametrize(("fields", "name", "value"), EXTRAS)
def test_each_extra_reaches_the_pipeline(echo_server: Server, fields: dict[str, Any], name: str, value: object) -> None:
    response = echo_server.generate(**{"response_format": "b64_json", "prompt": "a cat", **fields})
    assert response.status_code == 200, response.text
    assert echo(response.json()["data"][0])[name] == value


@pytest.mark.behaviour(120)
def test_a_request_names_its_solver_and_the_models_list_the_default(echo_server: Server) -> None:
    (model,) = echo_server.get("/v1/models").json()["data"]
    for solver in ("euler", "dpmpp2m", None):
        data = echo_server.generate(response_format="b64_json", solver=solver).json()["data"]
        assert echo(data[0])["solver"] == (solver or model["defaults"]["solver"])


@pytest.mark.behaviour(6)
def test_null_is_not_given(echo_server: Server) -> None:
    names = (
        "n",
        "size",
        "quality",
        "steps",
        "guidance_scale",
        "negative_prompt",
        "seed",
        "loras",
        "strength",
        "solver",
        "stream",
    )
    response = echo_server.generate(response_format="b64_json", **dict.fromkeys(names))
    request = echo(response.json()["data"][0])
    assert (request["num_inference_steps"], request["guidance_scale"], request["max_sequence_length"]) == (28, 3.5, 512)
    assert (request["width"], request["height"], len(request["seeds"])) == (64, 64, 1)
    assert response.headers["x-fluxserve-warning"] == "notice:a fake; that draws patterns"


QUALITIES = {"low": (20, "low"), "medium": (28, "medium"), "auto": (28, "medium"), "standard": (28, "medium")} | {
    "high": (50, "high"),
    "hd": (50, "high"),
    "xhigh": (50, "xhigh"),
    "max": (50, "max"),
}


@pytest.mark.behaviour(7)
@pytest.mark.parametrize("quality", QUALITIES)
def test_quality_picks_the_steps(echo_server: Server, quality: str) -> None:
    body = echo_server.generate(quality=quality, response_format="b64_json").json()
    assert (echo(body["data"][0])["num_inference_steps"], body["quality"]) == QUALITIES[quality]
    explicit = echo_server.generate(quality=quality, steps=3, response_format="b64_json").json()
    assert (echo(explicit["data"][0])["num_inference_steps"], explicit["quality"]) == (3, QUALITIES[quality][1])


@pytest.mark.behaviour(9)
@pytest.mark.parametrize("size", ["256x256", "512x512", "1024x1024", "1536x1024", "1024x1792", "auto"])
def test_sizes_are_drawn_as_asked(server: Server, size: str) -> None:
    body = server.generate(size=size, output_format="jpeg").json()
    expected = "64x64" if size == "auto" else size
    assert body["size"] == expected
    height, width, _ = picture(body["data"][0]["b64_json"]).shape
    assert f"{width}x{height}" == expected


BAD_SIZES = ["1000x1000", "1024x", "x1024", "0x1024", "-64x64", "1024.5x768", "1024 x 1024", " 64x64", "64X64", "7x7"]
BAD_SIZES += ["٦٤x٦٤", "99999x99999", "4112x64", "48x64", "4096x4096", "64x64x64", "big", "9" * 5000 + "x64"]


@pytest.mark.behaviour(10)
@pytest.mark.parametrize("size", BAD_SIZES)
def test_bad_sizes_are_refused(server: Server, size: str) -> None:
    assert_error(server.generate(size=size, seed=1010), 400, "invalid_size", "size")
    assert server.count("begin", 1010) == 0


def test_the_refusal_names_the_nearest_size(server: Server) -> None:
    assert "1008x768" in server.generate(width=1001, height=770).json()["error"]["message"]
    assert "--max-pixels" in server.generate(size="4096x4096").json()["error"]["message"]


@pytest.mark.behaviour(11)
def test_limits_are_exact(start_server: StartServer) -> None:
    server = start_server("--max-pixels", str(128 * 128), "--max-work", str(2 * 128 * 128 * 3))
    fits = {"size": "128x128", "n": 2, "steps": 3}
    assert server.generate(**fits).status_code == 200
    assert_error(server.generate(size="144x128"), 400, "invalid_size", "size")
    over = server.generate(**fits | {"steps": 4})
    message = assert_error(over, 400, "invalid_value", "num_inference_steps")["message"]
    assert str(2 * 128 * 128 * 3) in message
    assert_error(server.generate(**fits, true_cfg_scale=1.5), 400, "invalid_value", "num_inference_steps")
    assert server.generate(**fits | {"n": 1}, true_cfg_scale=1.5).status_code == 200


@pytest.mark.behaviour(11)
def test_the_memory_plans_limit_is_exact(start_server: StartServer) -> None:
    server = start_server(variables={"FLUXSERVE_FAKE_PIXELS": str(144 * 128)})
    assert server.get("/v1/models/default").json()["limits"]["max_pixels"] == 144 * 128
    assert server.generate(size="144x128").status_code == 200
    for size in ("160x128", "144x144"):
        message = assert_error(server.generate(size=size, seed=1111), 400, "invalid_size", "size")["message"]
        assert f"at most {144 * 128} pixels" in message
        assert "--memory-budget" in message
    assert server.count("begin", 1111) == 0


BAD_VALUES: list[tuple[dict[str, Any], str, str]] = [
    *(({"n": n}, "invalid_value", "n") for n in (0, 11, -1)),
    *(({"n": n}, "invalid_type", "n") for n in (1.5, "2", True, [], {})),
    *(({"steps": steps}, "invalid_value", "steps") for steps in (0, 201, 10**9)),
    *(({"num_inference_steps": steps}, "invalid_type", "num_inference_steps") for steps in ("4", True, 4.5)),
    *(({"guidance_scale": scale}, "invalid_value", "guidance_scale") for scale in (-1, 101, -0.001)),
    *(({"guidance_scale": scale}, "invalid_type", "guidance_scale") for scale in ("3", False, [3])),
    *(({"true_cfg_scale": scale}, "invalid_value", "true_cfg_scale") for scale in (-1, 20.5)),
    *(({"seed": seed}, "invalid_value", "seed") for seed in (-2, 2**64, 10**300)),
    *(({"seed": seed}, "invalid_type", "seed") for seed in ("7", 7.5, True)),
    *(({"max_sequence_length": length}, "invalid_value", "max_sequence_length") for length in (0, 513, -5)),
    *(({"strength": strength}, "invalid_value", "strength") for strength in (0, 1.01, -1)),
    *(({"partial_images": n}, "invalid_value", "partial_images") for n in (-1, 4)),
    *(({"output_compression": q}, "invalid_value", "output_compression") for q in (-1, 101)),
    *(({"stream": stream}, "invalid_type", "stream") for stream in ("true", 1, 0)),
    *(({"output_format": f}, "unsupported_value", "output_format") for f in ("gif", "svg", "bmp", "tiff")),
    *(({"background": b}, "unsupported_value", "background") for b in ("transparent", "blue")),
    ({"quality": "ultra"}, "invalid_value", "quality"),
    *(({"solver": solver}, "invalid_value", "solver") for solver in ("heun", "DPM++ 2M")),
    ({"solver": 2}, "invalid_value", "solver"),
    ({"response_format": "xml"}, "invalid_value", "response_format"),
    ({"model": 5}, "invalid_type", "model"),
    ({"size": 512}, "invalid_type", "size"),
    ({"width": 512}, "missing_required_parameter", "height"),
    ({"width": "512", "height": 512}, "invalid_type", "width"),
    ({"size": "64x64", "width": 64, "height": 128}, "conflicting_parameters", "size"),
    ({"steps": 3, "num_inference_steps": 4}, "conflicting_parameters", "num_inference_steps"),
    ({"guidance": 3, "guidance_scale": 4}, "conflicting_parameters", "guidance_scale"),
    ({"extra_body": 5}, "invalid_type", "extra_body"),
    *(({"prompt": prompt}, "invalid_value", "prompt") for prompt in ("", "   ", "\n\t", "a\0b")),
    *(({"prompt": prompt}, "invalid_type", "prompt") for prompt in (None, 5, ["a"], {})),
    ({"prompt": "x" * 32_001}, "string_above_max_length", "prompt"),
    ({"negative_prompt": "x" * 32_001}, "string_above_max_length", "negative_prompt"),
    ({"negative_prompt": "a\0"}, "invalid_value", "negative_prompt"),
    *(({"loras": loras}, "invalid_type", "loras") for loras in (5, [5], "[", "{a}")),
    *(({"loras": loras}, "invalid_value", "loras") for loras in ([{"name": "a", "scale": 5}], ["a"] * 9)),
    *(({"loras": [{"name": "a", key: "/etc/x"}]}, "invalid_value", "loras") for key in ("path", "url")),
    *(({"loras": loras}, "lora_not_found", "loras") for loras in (["a"], [{"name": "a", "scale": 0.5}], "a", '["a"]')),
    ({"lora": {"name": "a"}}, "lora_not_found", "loras"),
    ({"stream": True, "response_format": "url"}, "conflicting_parameters", "response_format"),
    ({"stream": True, "response_format": "file"}, "conflicting_parameters", "response_format"),
]


@pytest.mark.behaviour(8, 12, 13, 16)
@pytest.mark.parametrize(("fields", "code", "param"), BAD_VALUES)
def test_bad_values_are_refused_by_name(echo_server: Server, fields: dict[str, Any], code: str, param: str) -> None:
    response = echo_server.generate(**{"prompt": "a cat", "seed": 1212, **fields})
    assert_error(response, 400, code, param)
    assert echo_server.count("begin", 1212) == 0


def test_a_missing_prompt_is_named(server: Server) -> None:
    response = server.request("POST", "/v1/images/generations", json={})
    assert_error(response, 400, "missing_required_parameter", "prompt")


@pytest.mark.behaviour(13, 14)
def test_a_prompt_over_the_models_limit_is_cut_with_a_warning(server: Server) -> None:
    response = server.generate(" ".join(["word"] * 80))
    assert response.headers["x-fluxserve-warning"] == "truncated:prompt=80/256"
    assert response.json()["usage"]["input_tokens"] == 64
    assert server.generate("x" * 32_000).status_code == 200


@pytest.mark.behaviour(15)
def test_unknown_and_idle_fields_are_warned_of(server: Server) -> None:
    fields = {
        "foo": 1,
        "style": "vivid",
        "user": "me",
        "moderation": "low",
        "guidance_scale": 3,
        "negative_prompt": "fog",
    }
    response = server.generate(**fields, output_compression=50, strength=0.5, partial_images=2, frame_count=3)
    assert response.status_code == 200
    idle = (
        "frame_count",
        "guidance_scale",
        "negative_prompt",
        "output_compression",
        "partial_images",
        "strength",
        "style",
    )
    warnings = ["unknown:foo", *(f"ignored:{name}" for name in idle)]
    assert response.headers["x-fluxserve-warning"].split(", ") == warnings


@pytest.mark.behaviour(15)
def test_a_field_name_cannot_split_the_header(server: Server) -> None:
    response = server.generate(**{"a\r\nset-cookie: x=1": 1, "é" * 300: 2, "b" * 300: 3})
    assert response.headers["x-fluxserve-warning"] == f"unknown:aset-cookiex1, unknown:-, unknown:{'b' * 64}"
    assert "set-cookie" not in response.headers


def test_at_most_sixteen_warnings(server: Server) -> None:
    response = server.generate(**{f"field{i}": i for i in range(40)})
    assert len(response.headers["x-fluxserve-warning"].split(", ")) == 14  # and two that are no field's


@pytest.mark.behaviour(15)
def test_strict_refuses_unknown_fields(start_server: StartServer) -> None:
    server = start_server("--strict")
    assert_error(server.generate(foo=1), 400, "unknown_parameter", "foo")
    assert server.generate(style="vivid", user="me").status_code == 200


@pytest.mark.behaviour(17)
def test_formats_and_compression(server: Server) -> None:
    def size(**fields: Any) -> int:
        body = server.generate(seed=1717, response_format="file", size="256x256", **fields)
        assert body.content.startswith(JPEG), body.text
        return len(body.content)

    assert size(output_format="jpg") == size(output_format="JPEG") == size(output_format="jpeg", output_compression=95)
    sizes = [size(output_format="jpeg", output_compression=quality) for quality in (100, 50, 10)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[2]


FORMATS: list[tuple[dict[str, Any], str]] = [
    ({}, "url"),
    ({"model": "dall-e-3"}, "url"),
    ({"model": "default"}, "url"),
    ({"model": "gpt-image-1"}, "b64_json"),
    ({"model": "chatgpt-image-latest"}, "b64_json"),
    ({"model": "gpt-image-1", "response_format": "url"}, "url"),
    ({"response_format": "b64_json"}, "b64_json"),
    ({"output_format": "png"}, "b64_json"),
    ({"output_compression": 90}, "b64_json"),
    ({"background": "auto"}, "b64_json"),
    ({"partial_images": 0}, "b64_json"),
    ({"output_format": None}, "url"),
    ({"output_format": "webp", "response_format": "url"}, "url"),
]


@pytest.mark.behaviour(18)
@pytest.mark.parametrize(("fields", "key"), FORMATS)
def test_url_or_b64_json(server: Server, fields: dict[str, Any], key: str) -> None:
    [item] = server.generate(**fields).json()["data"]
    assert item.keys() == {key, "seed"}
    if key == "b64_json":
        picture(item[key])  # bare base64: a data: prefix would not decode


@pytest.mark.behaviour(18)
def test_the_default_response_format_is_an_option(start_server: StartServer) -> None:
    server = start_server("--default-response-format", "b64_json")
    assert server.generate().json()["data"][0].keys() == {"b64_json", "seed"}
    assert server.generate(response_format="url").json()["data"][0].keys() == {"url", "seed"}


@pytest.mark.behaviour(20)
def test_one_file_is_the_picture_and_several_are_a_zip(server: Server) -> None:
    single = server.generate(seed=20, response_format="file")
    assert single.headers["content-type"] == "image/png"
    assert single.headers["content-disposition"] == 'attachment; filename="image-0-20.png"'
    assert np.array_equal(picture(single.content), expected_pixels(20, 64, 64))
    several = server.generate(seed=20, n=3, response_format="file", output_format="jpeg")
    assert several.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(several.content)) as archive:
        assert archive.namelist() == ["image-0-20.jpg", "image-1-21.jpg", "image-2-22.jpg"]
        assert all(archive.read(name).startswith(JPEG) for name in archive.namelist())


@pytest.mark.behaviour(20)
def test_accept_asks_for_a_file(server: Server) -> None:
    webp = server.generate(headers={"accept": "text/html;q=0.5, image/webp;q=0.9, */*;q=0.8"})
    assert (webp.headers["content-type"], webp.content[:4]) == ("image/webp", WEBP)
    explicit = server.generate(headers={"accept": "image/webp"}, response_format="url")
    assert explicit.json()["data"][0].keys() == {"url", "seed"}
    clash = server.generate(headers={"accept": "image/webp"}, output_format="png")
    assert_error(clash, 400, "conflicting_parameters", "output_format")
    stream = server.generate(headers={"accept": "image/webp"}, stream=True)
    assert_error(stream, 400, "conflicting_parameters", "response_format")


@pytest.mark.behaviour(21)
@pytest.mark.parametrize("model", ["default", "fluxserve/fake", "fake", "dall-e-2", "gpt-image-2-2026-04-21", None])
def test_names_of_the_model(server: Server, model: str | None) -> None:
    assert server.generate(model=model).json()["model"] == "fluxserve/fake"


@pytest.mark.behaviour(21)
def test_other_names_are_not_found(server: Server, start_server: StartServer) -> None:
    for name in ("sdxl", "Default", "my-gpt-image-1"):
        assert_error(server.generate(model=name), 404, "model_not_found", "model")
    strict = start_server("--strict-model", "--served-model-name", "house", "--served-model-name", "mouse")
    assert_error(strict.generate(model="dall-e-3"), 404, "model_not_found", "model")
    assert_error(strict.generate(model="gpt-image-1"), 404, "model_not_found", "model")
    assert {strict.generate(model=name).status_code for name in ("house", "mouse", "default")} == {200}


@pytest.mark.behaviour(22)
def test_the_content_filter(start_server: StartServer) -> None:
    server = start_server("--content-filter", "tests.server.content_filters:no_dogs")
    assert server.generate("a cat").status_code == 200
    refusal = assert_error(server.generate("a dog", seed=2222), 400, "content_policy_violation", "prompt")
    assert refusal["message"] == "no dogs here"
    assert_error(server.generate("a bug", seed=2222), 503, "content_filter_failed")
    assert server.count("begin", 2222) == 0


@pytest.mark.behaviour(50)
def test_one_failed_picture_of_three_leaves_nothing_behind(server: Server) -> None:
    before = set(server.store.iterdir())
    assert_error(server.generate("a cat [nan:vae]", n=3), 500, "non_finite_output")
    assert set(server.store.iterdir()) == before


@pytest.mark.behaviour(51)
def test_everybody_gets_their_own_picture(start_server: StartServer) -> None:
    from concurrent.futures import ThreadPoolExecutor

    server = start_server(variables={"FLUXSERVE_FAKE_BATCH": "4"})

    def draw(seed: int) -> bool:
        body = server.generate("a cat [slow:step:0.02]", seed=seed, response_format="b64_json").json()
        return np.array_equal(picture(body["data"][0]["b64_json"]), expected_pixels(seed, 64, 64))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(draw, range(5100, 5116)))


def test_metadata_can_be_left_out(server: Server, start_server: StartServer) -> None:
    def chunks(of: Server) -> set[str]:
        return set(Image.open(io.BytesIO(of.generate(response_format="file").content)).info)

    assert chunks(server) == {"prompt", "seed"}
    assert chunks(start_server("--no-metadata")) == set()
