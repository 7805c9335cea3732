"""The form of an answer whose client does not say it in the body: Accept as programs send it, OpenAI's names, edits."""

from __future__ import annotations

import pytest

from tests.server.conftest import StartServer
from tests.server.running import EDITS, VARIATIONS, Server, assert_error, png

JAVA_8_TO_17 = "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"
HEADERS: dict[str, tuple[str | None, str]] = {
    "curl, wget, requests, node's and browsers' fetch": ("*/*", "application/json"),
    "Go, .NET": (None, "application/json"),
    "Java 8 to 17": (JAVA_8_TO_17, "application/json"),
    "Java 21": ("text/html, image/gif, image/jpeg, */*; q=0.2", "application/json"),
    "Chrome's img": ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", "application/json"),
    "Safari's img": (
        "image/webp,image/avif,image/jxl,image/heic,video/*;q=0.8,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5",
        "application/json",
    ),
    "Firefox's page": ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "application/json"),
    "axios": ("application/json, text/plain, */*", "application/json"),
    "openai": ("application/json", "application/json"),
    "huggingface_hub": ("image/png", "image/png"),
    "a picture alone": ("image/webp", "image/webp"),
    "a picture, else anything": ("image/webp, */*;q=0.1", "image/webp"),
    "a picture before JSON": ("application/json;q=0.5, IMAGE/JPEG;q=0.9", "image/jpeg"),
    "a picture among others": ("image/png, */*", "application/json"),
    "a picture after JSON": ("application/json, image/webp;q=0.5", "application/json"),
    "no picture": ("application/json, image/webp;q=0", "application/json"),
    "no picture, and nothing else": ("image/webp;q=0", "application/json"),
    "pictures in order": ("image/jpeg, image/png", "image/jpeg"),
    "pictures by weight": ("image/jpeg;q=0.3, image/webp; q=0.8", "image/webp"),
    "any picture": ("image/*", "image/png"),
    "a parameter that is no weight": ("image/png;level=1;q=0.2, text/html;q=.3", "application/json"),
    "a weight that is none": ("image/png;q=high", "image/png"),
    "nothing": ("", "application/json"),
    "commas": (", ;q=1,", "application/json"),
}


@pytest.mark.behaviour(20, 67)
@pytest.mark.parametrize("name", HEADERS)
def test_accept_as_programs_send_it(server: Server, name: str) -> None:
    accept, content_type = HEADERS[name]
    answer = server.generate(headers={"accept": accept} if accept is not None else {"accept": ""})
    assert (answer.status_code, answer.headers["content-type"]) == (200, content_type)


@pytest.mark.behaviour(67)
def test_java_may_stream_and_choose_a_format(server: Server) -> None:
    headers = {"accept": JAVA_8_TO_17}
    assert server.generate(headers=headers, output_format="png").json()["data"][0].keys() == {"b64_json", "seed"}
    assert server.generate(headers=headers, stream=True).headers["content-type"].startswith("text/event-stream")
    both = {"accept": "image/jpeg, image/webp"}
    assert server.generate(headers=both, output_format="webp").headers["content-type"] == "image/webp"
    assert server.generate(headers={"accept": "image/*"}, output_format="jpeg").headers["content-type"] == "image/jpeg"
    clash = server.generate(headers=both, output_format="png")
    assert_error(clash, 400, "conflicting_parameters", "output_format")


GENERATED = {"gpt-image-2": "b64_json", "chatgpt-image-latest": "b64_json", "dall-e-2": "url", "dall-e-3": "url"}


@pytest.mark.behaviour(18, 68)
@pytest.mark.parametrize("default", ["url", "b64_json"])
def test_names_say_the_form_and_edits_are_base64(start_server: StartServer, default: str) -> None:
    server = start_server("--default-response-format", default, "--served-model-name", "house")
    for model, key in {**GENERATED, "house": default, "default": default, None: default}.items():
        fields = {} if model is None else {"model": model}
        assert server.generate(**fields).json()["data"][0].keys() == {key, "seed"}, model
        edit = server.send_form(EDITS, {"prompt": "a cat", **fields}, [("image", png())])
        assert edit.json()["data"][0].keys() == {GENERATED.get(model or "", "b64_json"), "seed"}, model
        vary = server.send_form(VARIATIONS, fields, [("image", png())])
        assert vary.json()["data"][0].keys() == {key, "seed"}, model
        for asked in ("url", "b64_json"):
            assert server.generate(**fields, response_format=asked).json()["data"][0].keys() == {asked, "seed"}
            form = {"prompt": "a cat", "response_format": asked, **fields}
            answer = server.send_form(EDITS, form, [("image", png())])
            assert answer.json()["data"][0].keys() == {asked, "seed"}
