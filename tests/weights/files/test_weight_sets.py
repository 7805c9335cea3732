"""Folders as people have them: components alone, shards, variants, split GGUF files, and what should not be there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluxserve.errors import CheckpointError
from fluxserve.weights.describe import describe
from tests.conftest import MakeCheckpoint
from tests.weights.stored_files import open_quietly

COMPONENTS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
Name = Callable[[str, int, int], str]


@pytest.fixture
def folder(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint("dev", "diffusers"), tmp_path / "model"))


@pytest.fixture
def original(tiny_checkpoint: MakeCheckpoint) -> Path:
    return tiny_checkpoint("dev", "diffusers")


def assert_same(model: Path, original: Path, encoders: Path | None = None) -> None:
    ours, theirs = open_quietly(model, encoders), open_quietly(original)
    for part, reader in theirs.readers.items():
        assert set(ours.readers[part].keys()) == set(reader.keys())
        for key in reader.keys():
            assert torch.equal(ours.readers[part].read(key), reader.read(key)), key


def usual(stem: str, number: int, count: int) -> str:
    return f"{stem}-{number:05}-of-{count:05}.safetensors"


def thirds(tensors: dict[str, Tensor]) -> list[list[str]]:
    return [sorted(tensors)[number::3] for number in range(3)]


def shard(whole: Path, index: str | None, name: Name = usual) -> list[Path]:
    """The file in shards, with an index of this name if any; the whole file is gone. Returns the shards."""
    tensors, stem = load_file(whole), whole.name.removesuffix(".safetensors")
    paths, weight_map = [], {}
    for number, keys in enumerate(thirds(tensors), start=1):
        paths.append(whole.with_name(name(stem, number, 3)))
        save_file({key: tensors[key].clone() for key in keys}, paths[-1])
        weight_map |= dict.fromkeys(keys, paths[-1].name)
    whole.unlink()
    if index:
        (whole.parent / index).write_text(json.dumps({"weight_map": weight_map}))
    return paths


@pytest.mark.parametrize("indexed", [True, False])
def test_sharded_components_alone_make_a_model(folder: Path, original: Path, tmp_path: Path, indexed: bool) -> None:
    for name, stem in COMPONENTS.items():
        shard(folder / name / f"{stem}.safetensors", f"{stem}.safetensors.index.json" if indexed else None)
    assert_same(folder, original)
    apart = tmp_path / "apart"
    apart.mkdir()
    (folder / "transformer").rename(apart / "transformer")
    (folder / "model_index.json").unlink()
    assert_same(apart / "transformer", original, folder)
    first = sorted((apart / "transformer").glob("*00001*"))[0]
    assert_same(first, original, folder)
    assert [n.part.name for n in describe(folder / "text_encoder_2").networks] == ["t5"]
    if indexed:
        assert_same(apart / "transformer" / "diffusion_pytorch_model.safetensors.index.json", original, folder)


def test_a_text_encoder_alone_goes_before_the_models_own(folder: Path, original: Path, tmp_path: Path) -> None:
    other = Path(shutil.move(folder / "text_encoder_2", tmp_path / "t5"))
    shard(other / "model.safetensors", "model.safetensors.index.json")
    assert_same(folder, original, other)


@pytest.mark.parametrize("variant", ["fp16", "bf16", "no_ema"])
def test_variants_are_found_by_every_librarys_name(folder: Path, original: Path, variant: str) -> None:
    for name, stem in COMPONENTS.items():
        (folder / name / f"{stem}.safetensors").rename(folder / name / f"{stem}.{variant}.safetensors")
    assert_same(folder, original)
    index = f"diffusion_pytorch_model.safetensors.index.{variant}.json"
    whole = folder / "transformer" / f"diffusion_pytorch_model.{variant}.safetensors"
    shards = shard(whole, index, lambda stem, n, c: f"diffusion_pytorch_model-{n:05}-of-{c:05}.{variant}.safetensors")
    assert_same(folder, original)
    (folder / "transformer" / index).unlink()
    assert len(shards) == 3
    assert_same(folder, original)


def test_the_plain_weights_go_before_variants_and_two_variants_are_asked_about(folder: Path, original: Path) -> None:
    t5 = folder / "text_encoder_2"
    (t5 / "model.fp16.safetensors").write_bytes(b"not even a file")
    assert_same(folder, original)
    assert_same(folder, original, t5)
    (t5 / "model.safetensors").rename(t5 / "model.bf16.safetensors")
    with pytest.raises(
        CheckpointError, match=r"several variants: model\.bf16\.safetensors, model\.fp16\.safetensors; keep"
    ):
        open_quietly(folder)


@pytest.mark.parametrize("index", ['{"weight_map": {"a": "gone.safetensors"}}', '{"weight_map": {}}', "{}"])
def test_a_stale_index_beside_a_whole_file_is_left_alone(
    folder: Path, original: Path, caplog: pytest.LogCaptureFixture, index: str
) -> None:
    for name, stem in COMPONENTS.items():
        (folder / name / f"{stem}.safetensors.index.json").write_text(index)
    assert_same(folder, original)
    assert_same(folder, original, folder / "text_encoder_2")
    assert "names files that are not there; model.safetensors is used" in caplog.text
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="transformer"):
        open_quietly(folder)


def test_what_macos_leaves_behind_is_not_read(
    folder: Path, original: Path, tiny_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    files = Path(shutil.copytree(tiny_checkpoint("dev", "bfl"), tmp_path / "files"))
    for name in ("._flux1-dev.safetensors", "._t5xxl.gguf", ".hidden.safetensors"):
        (files / name).write_bytes(b"\x00\x05\x16\x07")
    assert_same(files, original)
    for name, stem in COMPONENTS.items():
        (folder / name / f"._{stem}.safetensors").write_bytes(b"\x00\x05\x16\x07")
        (folder / name / f"._{stem}.safetensors.index.json").write_bytes(b"\x00\x05\x16\x07")
    assert_same(folder, original)


def split_gguf(folder: Path, stem: str, tensors: dict[str, Tensor]) -> list[Path]:
    """As gguf-split does: the first part alone tells the architecture."""
    paths = []
    for number, keys in enumerate(thirds(tensors), start=1):
        paths.append(folder / f"{stem}-{number:05}-of-00003.gguf")
        writer = GGUFWriter(paths[-1], "flux")
        if number > 1:
            writer.kv_data[0].clear()
        writer.add_uint16("split.no", number - 1)
        writer.add_uint16("split.count", 3)
        for key in keys:
            writer.add_tensor(key, tensors[key].float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_a_split_gguf_is_joined_or_named_as_such(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    files = Path(shutil.copytree(tiny_checkpoint("dev", "bfl"), tmp_path / "files"))
    tensors = load_file(files / "flux1-dev.safetensors")
    (files / "flux1-dev.safetensors").unlink()
    parts = split_gguf(files, "flux1-dev", tensors)
    for model in (files, *parts):
        opened = open_quietly(model).readers["transformer"]
        assert set(opened.keys()) == set(tensors)
        assert len(opened.files) == 3
    assert open_quietly(parts[0]).id == "flux1-dev"
    assert torch.equal(opened.read("img_in.weight"), tensors["img_in.weight"].float())
    parts[1].rename(tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match=r"is one of 3 parts; missing flux1-dev-00002-of-00003\.gguf"):
        open_quietly(parts[0])
    with pytest.raises(CheckpointError, match=r"b\.gguf: is one of 3 parts of a split GGUF file; keep all of them"):
        describe(tmp_path / "b.gguf")
    shutil.copy(parts[0], parts[1])
    with pytest.raises(CheckpointError, match=r"its parts hold the same tensors: .* in .*00001-of-00003.* and"):
        open_quietly(parts[0])
