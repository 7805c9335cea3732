"""LoRAs chosen by each request, over HTTP, from a folder that the server names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import MakeCheckpoint
from tests.loras import write_loras
from tests.server import running
from tests.server.running import Server, assert_error


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
