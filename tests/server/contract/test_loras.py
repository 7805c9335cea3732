"""LoRAs chosen by each request, over HTTP, from a folder that the server names."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fluxserve.models.flux1.lora_names import lora_targets
from fluxserve.models.flux1.sizes import TINY
from tests.conftest import MakeCheckpoint
from tests.loras import RANK, write_loras
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


def pixels(server: Server, **fields: object) -> bytes:
    """Without the names of LoRAs that a picture tells."""
    return Image.open(io.BytesIO(base64.b64decode(drawn(server, **fields)))).tobytes()


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


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder with one LoRA as a file with alphas and as peft's folder, another, and what macOS leaves behind."""
    folder = write_loras(tmp_path)
    matrices = load_file(folder / "style.safetensors")
    modules = {key.split(".")[0] for key in matrices}
    alphas = {f"{module}.alpha": torch.tensor(3.0) for module in modules}
    (folder / "peft").mkdir()
    targets = lora_targets(TINY)
    renamed = {
        f"base_model.model.{targets[key.split('.')[0]].linear}.{'lora_A' if 'down' in key else 'lora_B'}.weight": tensor
        for key, tensor in matrices.items()
    }
    save_file(renamed, folder / "peft" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "rank_pattern": {".*": RANK}, "lora_alpha": 1, "alpha_pattern": {".*": 3}}
    (folder / "peft" / "adapter_config.json").write_text(json.dumps(config))
    save_file(matrices | alphas, folder / "style.safetensors")
    (folder / "._style.safetensors").write_bytes(b"\x00\x05\x16\x07")
    return folder


def test_a_folder_of_peft_acts_as_its_configuration_says_and_files_may_change(
    tiny_checkpoint: MakeCheckpoint, mixed: Path
) -> None:
    (mixed / "served").mkdir()
    flags = [str(tiny_checkpoint()), "--dtype", "float32", "--lora-dir", str(mixed)]
    server = running.start(flags, mixed / "served", running.REAL_WORKER).wait_ready()
    try:
        assert server.get("/v1/models").json()["data"][0]["loras"] == ["light", "peft", "style", "words"]
        first = pixels(server, loras=["style"])
        assert pixels(server, loras=["peft"]) == first
        assert pixels(server) != first
        path = mixed / "style.safetensors"
        size = path.stat().st_size
        for content in (bytes(size), path.read_bytes()[: size // 2], b"", bytes(4 * size)):
            with path.open("r+b") as file:  # in place, as cp does
                file.truncate(0)
                file.write(content)
            assert pixels(server, loras=["light"]) != first  # it takes the place on the device
            assert pixels(server, loras=["style"]) == first
    finally:
        assert server.stop() == 0, server.log.read_text()
