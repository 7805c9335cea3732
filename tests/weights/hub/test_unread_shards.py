"""Shards of which no tensor is read are neither fetched nor missed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fluxserve.errors import CheckpointError
from tests.conftest import MakeCheckpoint
from tests.models.loading import latents, load
from tests.weights.hub.hub_stub import StubHub, serve_hub
from tests.weights.hub.test_pull import fluxserve
from tests.weights.stored_files import open_quietly

BOUNDS = (0, 14, 27, 35, 99)
"""First layers of four shards: klein reads two of them and Z-Image three."""


def cut(model: Path, folder: Path) -> Path:
    """A copy of a model whose text encoder lies in four shards; head and norm in the last."""
    shutil.copytree(model, folder)
    whole = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(whole)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    whole.unlink()
    weight_map = {key: f"model-{_place(key):05}-of-00004.safetensors" for key in tensors}
    for name in set(weight_map.values()):
        save_file({key: tensor for key, tensor in tensors.items() if weight_map[key] == name}, whole.with_name(name))
    whole.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def _place(key: str) -> int:
    if ".layers." not in key:
        return 1 if "embed_tokens" in key else 4
    layer = int(key.split(".")[2])
    return next(i for i, first in enumerate(BOUNDS[1:], start=1) if layer < first)


def shard_names(count: int) -> set[str]:
    return {f"text_encoder/model-{number:05}-of-00004.safetensors" for number in range(1, count + 1)}


@pytest.mark.behaviour(112)
@pytest.mark.parametrize(("variant", "read"), [("klein", 2), ("zimage-turbo", 3)])
def test_only_what_is_read_is_pulled(tiny_checkpoint: MakeCheckpoint, tmp_path: Path, variant: str, read: int) -> None:
    repository = cut(tiny_checkpoint(variant), tmp_path / "repository")
    there = {f"text_encoder/{path.name}" for path in (repository / "text_encoder").glob("*.safetensors")}
    hub, home = StubHub({"some/model": repository}), tmp_path / "home"
    with serve_hub(hub):
        listed = fluxserve(hub.url, home, "pull", "some/model", "--dry-run")
        pulled = fluxserve(hub.url, home, "pull", "some/model")
        assert pulled.returncode == 0, pulled.stderr
    assert {name for name in hub.fetched if name.endswith(".safetensors") and "encoder" in name} == shard_names(read)
    for name in there:
        assert (name in listed.stdout) == (name in shard_names(read))
    drawn = fluxserve(
        hub.url, home, "generate", "a cat", "-m", "some/model", "-o", f"{tmp_path}/a.png", "--size", "64x64"
    )
    assert drawn.returncode == 0, drawn.stderr  # the Hub is gone by now


def test_a_model_draws_the_same_without_them(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = cut(tiny_checkpoint("klein"), tmp_path / "model")
    (folder / "text_encoder" / "model-00003-of-00004.safetensors").unlink(missing_ok=True)
    (folder / "text_encoder" / "model-00004-of-00004.safetensors").unlink()
    assert (latents(load(folder)) == latents(load(tiny_checkpoint("klein")))).all()


@pytest.mark.fault(107)
@pytest.mark.parametrize(("variant", "lost"), [("klein", 1), ("klein", 2), ("zimage-turbo", 3)])
def test_a_shard_that_is_read_is_missed(
    tiny_checkpoint: MakeCheckpoint, tmp_path: Path, variant: str, lost: int
) -> None:
    folder = cut(tiny_checkpoint(variant), tmp_path / "model")
    (folder / "text_encoder" / f"model-0000{lost}-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"model-0000{lost}-of-00004|has 27 layers, 35 are read"):
        open_quietly(folder)


def test_a_text_encoder_alone_is_fetched_whole(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """Another family may read more of it."""
    repository = cut(tiny_checkpoint("klein"), tmp_path / "repository")
    files = tiny_checkpoint("klein", "bfl")
    hub = StubHub({"some/model": repository})
    with serve_hub(hub):
        output = ("-o", f"{tmp_path}/a.png", "--size", "64x64")
        arguments = ("-m", str(files / "flux-2-klein.safetensors"), "--text-encoders", "some/model", *output)
        drawn = fluxserve(hub.url, tmp_path / "home", "generate", "a cat", *arguments)
    assert drawn.returncode == 0, drawn.stderr
    assert "text_encoder/model-00004-of-00004.safetensors" in hub.fetched
