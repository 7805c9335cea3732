"""Models from the Hub: only what is needed is fetched, refusals come first, and the cache serves offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeCheckpoint
from tests.weights.hub.hub_stub import StubHub, serve_hub

OPEN = """
import json, sys
from fluxserve.errors import FluxserveError
from fluxserve.weights.checkpoint import open_checkpoint

for model in sys.argv[1:]:
    seen = []
    try:
        opened = open_checkpoint(model, None, lambda *progress: seen.append(progress))
        answer = {"id": opened.id, "keys": len(opened.readers["transformer"].keys())}
    except FluxserveError as error:
        answer = {"error": type(error).__name__, "message": error.message}
    print(json.dumps(answer | {"progress": seen}))
"""
"""In a process of its own: huggingface_hub reads its environment once, when it is imported."""


def open_elsewhere(hub_url: str, home: Path, *models: str, **environment: str) -> list[dict[str, object]]:
    settings = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | environment
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    run = subprocess.run(
        [sys.executable, "-c", OPEN, *models], env=clean | settings, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.fixture(scope="module")
def repository(tiny_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as the published ones are: both layouts, second precisions and pickles side by side."""
    folder = tmp_path_factory.mktemp("hub") / "repository"
    shutil.copytree(tiny_checkpoint("schnell", "diffusers"), folder)
    shutil.copy(tiny_checkpoint("schnell", "bfl") / "flux1-schnell.safetensors", folder)
    shutil.copy(tiny_checkpoint("schnell", "bfl") / "ae.safetensors", folder)
    shutil.copy(folder / "text_encoder" / "model.safetensors", folder / "text_encoder" / "model.fp16.safetensors")
    (folder / "text_encoder" / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "README.md").write_text("text")
    return folder


def test_fetches_only_what_is_needed_and_tells_its_progress(repository: Path, tmp_path: Path) -> None:
    hub = StubHub({"some/flux": repository})
    with serve_hub(hub):
        first, again = open_elsewhere(hub.url, tmp_path, "some/flux", "some/flux")
        fetched = list(hub.fetched)
        (offline,) = open_elsewhere(hub.url, tmp_path, "some/flux", HF_HUB_OFFLINE="1")
    (unreachable,) = open_elsewhere(hub.url, tmp_path, "some/flux")
    for opened in (first, again, offline, unreachable):
        assert (opened["id"], opened["keys"]) == ("some/flux", 88)
    assert len(fetched) == len(set(fetched))
    folders = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    assert {name.split("/")[0] for name in fetched} == {"model_index.json", *folders}
    assert not [name for name in fetched if "fp16" in name or name.endswith((".bin", ".md"))]
    progress = first["progress"]
    assert isinstance(progress, list)
    done = [done for _, done, _ in progress]
    totals = {total for _, _, total in progress}
    assert done == sorted(done)
    assert totals == {done[-1]} == {sum((repository / name).stat().st_size for name in fetched)}


def test_what_cannot_be_had_is_told_in_four_lines_before_anything_is_fetched(repository: Path, tmp_path: Path) -> None:
    refusals = {"a/gated": (401, "GatedRepo"), "a/forbidden": (403, "GatedRepo"), "a/refused": (403, "")}
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(repository / "ae.safetensors", bare / "flux1-dev-Q8_0.gguf")
    repositories = dict.fromkeys(refusals, repository) | {"a/bare": bare}
    hub = StubHub(repositories, refusals)
    models = ["a/gated", "a/forbidden", "a/missing", "a/bare", "a/bare/flux1-none.gguf", "a/refused"]
    with serve_hub(hub):
        gated, forbidden, missing, layout, no_file, refused = open_elsewhere(hub.url, tmp_path, *models)
        (offline,) = open_elsewhere(hub.url, tmp_path, "a/gated", HF_HUB_OFFLINE="1")
    (unreachable,) = open_elsewhere(hub.url, tmp_path, "a/gated")
    answers = [gated, forbidden, missing, layout, no_file, refused, offline, unreachable]
    assert [answer["error"] for answer in answers] == ["SourceError"] * len(answers)
    for answer, says in zip(
        answers,
        [
            (f"{hub.url}/a/gated", "accept", "HF_TOKEN", "fluxserve pull schnell"),
            ("a/forbidden: is gated", "HF_TOKEN"),
            ("a/missing: no such repository", "HF_TOKEN"),
            ("a/bare", "flux1-dev-Q8_0.gguf", "--text-encoders"),
            ("a/bare: has no such file",),
            ("a/refused", "answers 403"),
            ("a/gated: is not in the cache", "HF_HUB_OFFLINE is set"),
            ("a/gated: is not in the cache", "cannot be reached", "HF_ENDPOINT"),
        ],
        strict=True,
    ):
        message = str(answer["message"])
        assert all(word in message for word in says), message
    assert len(str(gated["message"]).splitlines()) == 4
    assert hub.fetched == []


def test_one_file_of_a_repository_may_be_named(published_widths: Path, tmp_path: Path) -> None:
    hub = StubHub({"some/files": published_widths})
    with serve_hub(hub):
        (opened,) = open_elsewhere(hub.url, tmp_path, "some/files/flux1-schnell.safetensors")
    assert opened["error"] == "CheckpointError"  # it is there; what belongs beside it is not
    assert "no autoencoder, no clip, no t5" in str(opened["message"])
    assert hub.fetched == ["flux1-schnell.safetensors"]
