"""Networks under the names that tools give them: one component alone, norms by another name, CLIP's other half."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from fluxserve.errors import CheckpointError
from fluxserve.weights.describe import describe
from fluxserve.weights.files.identify import components, open_file
from tests.conftest import MakeCheckpoint
from tests.weights.conftest import PackedModel
from tests.weights.stored_files import open_quietly, rewrite

Tensors = dict[str, Tensor]
FILES = {
    "transformer": "flux1-dev.safetensors",
    "autoencoder": "ae.safetensors",
    "t5": "t5xxl.safetensors",
    "clip": "clip_l.safetensors",
}


@pytest.fixture
def files(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint("dev", "bfl"), tmp_path / "files"))


def assert_same(files: Path, original: Path) -> None:
    """Every network reads as it did before its file was rewritten."""
    ours, theirs = open_quietly(files), open_quietly(original)
    for part, reader in theirs.readers.items():
        assert set(ours.readers[part].keys()) == set(reader.keys())
        for key in reader.keys():
            assert torch.equal(ours.readers[part].read(key), reader.read(key)), key


def prefixed(prefix: str, **extra: Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {f"{prefix}{key}": tensor for key, tensor in tensors.items()} | extra


def norms_as_weight(tensors: Tensors) -> Tensors:
    return {key.replace("_norm.scale", "_norm.weight"): tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("part", "prefix"),
    [
        ("transformer", "model.diffusion_model."),
        ("transformer", "diffusion_model."),
        ("autoencoder", "vae."),
        ("autoencoder", "first_stage_model."),
        ("t5", "text_encoders.t5xxl.transformer."),
        ("t5", "t5xxl.transformer."),
        ("t5", "text_encoder_2."),
        ("clip", "text_encoders.clip_l.transformer."),
        ("clip", "clip_l.transformer."),
        ("clip", "text_encoder."),
    ],
)
def test_one_component_alone_may_have_a_prefix(
    files: Path, tiny_checkpoint: MakeCheckpoint, part: str, prefix: str
) -> None:
    rewrite(files / FILES[part], prefixed(prefix))
    assert_same(files, tiny_checkpoint("dev", "bfl"))
    assert len(describe(files / FILES[part]).networks) == 1


def test_what_lies_beside_a_lone_component_is_ignored_or_refused(files: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    rewrite(
        files / FILES["t5"],
        prefixed("text_encoders.t5xxl.transformer.", **{"text_encoders.t5xxl.logit_scale": torch.tensor(4.6)}),
    )
    assert_same(files, tiny_checkpoint("dev", "bfl"))
    rewrite(files / FILES["autoencoder"], prefixed("vae.", **{"stray.weight": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"unexpected stray\.weight"):
        open_quietly(files)
    rewrite(
        files / FILES["autoencoder"],
        lambda t: (
            {"vae.encoder.conv_in.bias": t["vae.encoder.conv_in.bias"].clone()}
            | {key.removeprefix("vae."): tensor for key, tensor in t.items() if key != "stray.weight"}
        ),
    )
    with pytest.raises(CheckpointError, match=r"holds with and without 'vae\.': encoder\.conv_in\.bias"):
        describe(files / FILES["autoencoder"])


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_norms_may_be_named_weight(files: Path, tiny_checkpoint: MakeCheckpoint, prefix: str) -> None:
    rewrite(files / FILES["transformer"], lambda tensors: prefixed(prefix)(norms_as_weight(tensors)))
    assert_same(files, tiny_checkpoint("dev", "bfl"))


def test_half_of_the_norms_may_be_named_weight_but_none_twice(files: Path, tiny_checkpoint: MakeCheckpoint) -> None:
    rewrite(
        files / FILES["transformer"],
        lambda t: {k.replace("query_norm.scale", "query_norm.weight"): v for k, v in t.items()},
    )
    assert_same(files, tiny_checkpoint("dev", "bfl"))
    rewrite(
        files / FILES["transformer"],
        lambda t: t.update({"double_blocks.0.img_attn.norm.key_norm.weight": torch.ones(16)}),
    )
    with pytest.raises(CheckpointError, match=r"unexpected double_blocks\.0\.img_attn\.norm\.key_norm\.weight"):
        open_quietly(files)


def test_an_all_in_one_may_name_its_norms_weight(files: Path, tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    prefixes = (
        "model.diffusion_model.",
        "first_stage_model.",
        "text_encoders.t5xxl.transformer.",
        "text_encoders.clip_l.transformer.",
    )
    bundle: Tensors = {}
    for file, prefix in zip(FILES.values(), prefixes, strict=True):
        bundle |= prefixed(prefix)(norms_as_weight(load_file(files / file)))
    save_file(bundle, tmp_path / "all.safetensors")
    found = components(open_file(tmp_path / "all.safetensors"))
    original = open_quietly(files)
    for part, reader in found.items():
        assert set(reader.keys()) == set(original.readers[part.name].keys())
    assert {part.name for part in found} == set(FILES)


def plain_gguf(path: Path, architecture: str | None, tensors: Tensors) -> None:
    writer = GGUFWriter(path, architecture or "flux")
    if architecture is None:
        writer.kv_data[0].clear()
    for key, tensor in tensors.items():
        writer.add_tensor(key, tensor.float().numpy(), raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("architecture", ["flux", "pig", "cow", None])
@pytest.mark.parametrize("part", FILES)
def test_gguf_files_of_any_architecture_are_told_by_their_names(
    files: Path, tiny_checkpoint: MakeCheckpoint, part: str, architecture: str | None
) -> None:
    path = files / FILES[part]
    tensors = load_file(path)
    path.unlink()
    plain_gguf(path.with_suffix(".gguf"), architecture, norms_as_weight(tensors))
    opened, original = open_quietly(files).readers[part], open_quietly(tiny_checkpoint("dev", "bfl")).readers[part]
    assert set(opened.keys()) == set(original.keys())
    for key in original.keys():
        assert torch.equal(opened.read(key), original.read(key).float()), key


def test_gguf_files_of_another_architecture_are_refused(packed_model: PackedModel, tmp_path: Path) -> None:
    source = next(packed_model("q4_0", "bfl").glob("flux*.gguf"))
    raw = source.read_bytes()
    assert raw.count(b"\x04\x00\x00\x00\x00\x00\x00\x00flux") == 1
    raw = raw.replace(b"\x04\x00\x00\x00\x00\x00\x00\x00flux", b"\x04\x00\x00\x00\x00\x00\x00\x00pigs")
    (tmp_path / "pigs.gguf").write_bytes(raw)
    with pytest.raises(CheckpointError, match="is a GGUF file of a pigs; fluxserve reads flux"):
        describe(tmp_path / "pigs.gguf")


def clip_with_vision(clip: Tensors) -> Tensors:
    text = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(1)
    whole = CLIPModel(
        CLIPConfig(text_config=text, vision_config=text | {"image_size": 32, "patch_size": 16}, projection_dim=8)
    )
    others = {key: tensor for key, tensor in whole.state_dict().items() if not key.startswith("text_model.")}
    assert {key.split(".")[0] for key in others} == {
        "vision_model",
        "visual_projection",
        "text_projection",
        "logit_scale",
    }
    return clip | others | {"text_model.embeddings.position_ids": torch.arange(77)[None]}


@pytest.mark.parametrize("prefix", ["", "text_encoders.clip_l.transformer."])
def test_clip_may_come_with_its_vision_tower_and_projections(
    files: Path, tiny_checkpoint: MakeCheckpoint, prefix: str
) -> None:
    rewrite(files / FILES["clip"], lambda tensors: prefixed(prefix)(clip_with_vision(tensors)))
    config = json.loads((files / "clip_l.json").read_text())
    (files / "clip_l.json").write_text(json.dumps({"text_config": config, "projection_dim": 8}))
    assert_same(files, tiny_checkpoint("dev", "bfl"))
    assert (
        open_quietly(files).architecture.sizes.clip
        == open_quietly(tiny_checkpoint("dev", "bfl")).architecture.sizes.clip
    )
