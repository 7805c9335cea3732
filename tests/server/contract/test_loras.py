"""LoRAs chosen by each request, over HTTP, from a folder that the server names."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.conftest import MakeCheckpoint
from tests.loras import write_loras
from tests.server import running
from tests.server.running import EDITS, Server, assert_error, png


@pytest.fixture(scope="module")
def server(tiny_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = write_loras(tmp_path_factory.mktemp("loras"))
    flags = [str(tiny_checkpoint()), "--dtype", "float32", "--lora-dir", str(folder)]
    server = running.start(flags, tmp_path_factory.mktemp("served"), running.REAL_WORKER).wait_ready()
    yield server
    assert server.stop() == 0, server.log.read_text()


def drawn(server: Server, **fields: object) -> str:
    answer = server.generate(seed=7, size="64x64", steps=2, response_format="b64_json", **fields)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"][0]["b64_json"])


def test_each_request_chooses_by_name(server: Server) -> None:
    plain = drawn(server)
    named, half = drawn(server, loras=["style"]), drawn(server, loras=[{"name": "style", "scale": 0.5}])
    assert len({plain, named, half, drawn(server, loras=["style", "words"])}) == 4
    assert drawn(server, lora={"name": "style"}) == named
    assert drawn(server) == plain


def test_models_lists_the_names_and_others_are_not_found(server: Server) -> None:
    (model,) = server.get("/v1/models").json()["data"]
    assert model["loras"] == ["light", "style", "words"]
    error = assert_error(server.generate(loras=["../style"]), 400, "lora_not_found", "loras")
    assert "there are light, style, words" in error["message"]


BOTH = [{"name": "style", "scale": 0.5}, "words"]
JSON_SPELLINGS: list[dict[str, object]] = [
    {"loras": BOTH},
    {"lora": BOTH},
    {"loras[]": BOTH},
    {"loras": json.dumps(BOTH)},
    {"loras": [json.dumps(BOTH[0]), "words"]},
    {"loras[0]": BOTH[0], "loras[1]": "words"},
    {"loras": BOTH[0], "loras[]": ["words"]},
    {"loras[0][name]": "style", "loras[0][scale]": 0.5, "loras[1][name]": "words"},
    {"extra_body": {"loras": BOTH}},
    {"loras": BOTH, "lora": BOTH},
]
FORM_SPELLINGS: list[list[tuple[str, str]]] = [
    [("loras", json.dumps(BOTH))],
    [("loras[]", json.dumps(BOTH[0])), ("loras[]", "words")],
    [("loras", '{"name": "style", "scale": 0.5}'), ("loras", "words")],
    [("lora", json.dumps(BOTH[0])), ("loras[][name]", "words"), ("loras[][scale]", "1.")],
    [("loras[][name]", "words"), ("loras[]", json.dumps(BOTH[0]))],
    [("loras[0][name]", "style"), ("loras[1][name]", "words"), ("loras[0][scale]", "5e-1")],
    [("loras[0]", json.dumps(BOTH[0])), ("loras[1]", "words")],
    [("loras[][name]", "style"), ("loras[][name]", "words"), ("loras[][scale]", "0.5"), ("loras[][scale]", "1")],
    [("loras", ""), ("lora[]", json.dumps(BOTH))],
]


@pytest.mark.behaviour(74)
def test_every_spelling_in_json(server: Server) -> None:
    expected = drawn(server, loras=BOTH)
    assert [drawn(server, **fields) == expected for fields in JSON_SPELLINGS] == [True] * len(JSON_SPELLINGS)
    assert drawn(server, lora="style") == drawn(server, loras="style") == drawn(server, loras=["style"])
    assert_error(server.generate(loras=["style"], lora="words"), 400, "conflicting_parameters", "loras")


@pytest.mark.behaviour(29, 74)
def test_every_spelling_in_forms(server: Server) -> None:
    def edited(*fields: tuple[str, str]) -> str:
        own = [("prompt", "a"), ("seed", "7"), ("size", "64x64"), ("steps", "2"), ("response_format", "b64_json")]
        parts = [(name, (None, value)) for name, value in (*own, *fields)]
        answer = server.request("POST", EDITS, files=[("image", ("upload", png())), *parts])
        assert answer.status_code == 200, answer.text
        return str(answer.json()["data"][0]["b64_json"])

    plain, style, both = edited(), edited(("loras[]", "style")), edited(*FORM_SPELLINGS[0])
    assert len({plain, style, both}) == 3
    assert [edited(*fields) == both for fields in FORM_SPELLINGS] == [True] * len(FORM_SPELLINGS)
    assert edited(("loras", "style")) == edited(("lora", "style")) == edited(("loras", '["style"]')) == style
