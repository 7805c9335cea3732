"""Whole models: both layouts read alike, parts may lie in several places, and nothing incomplete or foreign opens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluxserve.errors import CheckpointError, ConfigError
from fluxserve.models.flux1.sizes import TINY
from fluxserve.tensors.reader import TensorReader
from fluxserve.weights.checkpoint import Checkpoint, open_checkpoint
from fluxserve.weights.files.identify import components
from fluxserve.weights.files.safetensors_file import SafetensorsFile
from tests.conftest import MakeCheckpoint
from tests.weights.stored_files import open_quietly, rewrite

PARTS = ("transformer", "autoencoder", "t5", "clip")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def readers(checkpoint: Checkpoint) -> list[TensorReader]:
    return [checkpoint.readers[part] for part in PARTS]


@pytest.fixture
def folder(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    """A diffusers folder to damage."""
    return Path(shutil.copytree(tiny_checkpoint("schnell", "diffusers"), tmp_path / "model"))


@pytest.fixture
def files(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    """A folder of single files to damage."""
    return Path(shutil.copytree(tiny_checkpoint("dev", "bfl"), tmp_path / "files"))


@pytest.mark.parametrize("variant", ["schnell", "dev"])
def test_both_layouts_give_the_same_tensors(tiny_checkpoint: MakeCheckpoint, variant: str) -> None:
    diffusers = open_quietly(tiny_checkpoint(variant, "diffusers"))
    bfl = open_quietly(tiny_checkpoint(variant, "bfl"))
    for one, other in zip(readers(diffusers), readers(bfl), strict=True):
        assert set(one.keys()) == set(other.keys())
        for key in one.keys():
            assert one.shape(key) == other.shape(key) == tuple(one.read(key).shape)
            assert one.dtype(key) == one.read(key).dtype
            assert torch.equal(one.read(key), other.read(key)), key
    assert diffusers.variant.name == bfl.variant.name == variant
    assert diffusers.architecture.sizes.transformer == bfl.architecture.sizes.transformer
    assert (
        diffusers.architecture.sizes.autoencoder,
        diffusers.architecture.sizes.t5,
        diffusers.architecture.sizes.clip,
    ) == (
        TINY.autoencoder,
        TINY.t5,
        TINY.clip,
    )


def test_fused_tensors_are_the_published_conversion(tiny_checkpoint: MakeCheckpoint) -> None:
    """By hand, for one tensor of each kind of rule."""
    folder = tiny_checkpoint("schnell", "diffusers")
    stored = load_file(folder / "transformer" / WEIGHTS)
    read = open_quietly(folder).readers["transformer"].read
    qkv = torch.cat([stored[f"transformer_blocks.1.attn.add_{name}_proj.weight"] for name in "qkv"])
    assert torch.equal(read("double_blocks.1.txt_attn.qkv.weight"), qkv)
    single = [stored[f"single_transformer_blocks.2.{name}.bias"] for name in ("attn.to_q", "attn.to_k", "attn.to_v")]
    fused = torch.cat([*single, stored["single_transformer_blocks.2.proj_mlp.bias"]])
    assert torch.equal(read("single_blocks.2.linear1.bias"), fused)
    scale, shift = stored["norm_out.linear.weight"].chunk(2)
    assert torch.equal(read("final_layer.adaLN_modulation.1.weight"), torch.cat([shift, scale]))
    vae = load_file(folder / "vae" / WEIGHTS)
    read = open_quietly(folder).readers["autoencoder"].read
    key = vae["decoder.mid_block.attentions.0.to_k.weight"]
    assert torch.equal(read("decoder.mid.attn_1.k.weight"), key[:, :, None, None])
    conv = vae["decoder.up_blocks.0.resnets.1.conv2.weight"]
    assert torch.equal(read("decoder.up.3.block.1.conv2.weight"), conv)


def test_the_model_is_known_by_its_folder_file_or_name(tiny_checkpoint: MakeCheckpoint) -> None:
    files = tiny_checkpoint("dev", "bfl")
    assert open_quietly(files).id == files.name
    assert open_quietly(files / "flux1-dev.safetensors").id == "flux1-dev"
    untrained = open_quietly("demo-untrained")
    assert (untrained.id, untrained.variant.name) == ("demo-untrained", "demo-untrained")


def test_text_encoders_may_lie_elsewhere(files: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "encoders"
    elsewhere.mkdir()
    for name in ("clip_l.safetensors", "clip_l.json", "t5xxl.safetensors", "t5xxl.json", "tokenizer", "tokenizer_2"):
        (files / name).rename(elsewhere / name)
    with pytest.raises(CheckpointError, match=r"no clip, no t5, no tokenizer, no tokenizer_2.*--text-encoders"):
        open_quietly(files)
    opened = open_quietly(files / "flux1-dev.safetensors", elsewhere)
    assert (opened.architecture.sizes.t5, opened.tokenizers["tokenizer"]) == (TINY.t5, elsewhere / "tokenizer")


def test_a_diffusers_folder_lends_its_text_encoders(files: Path, folder: Path) -> None:
    for name in ("clip_l.safetensors", "t5xxl.safetensors", "ae.safetensors"):
        (files / name).unlink()
    opened = open_quietly(files / "flux1-dev.safetensors", folder)
    assert opened.readers["autoencoder"].source.startswith(str(folder / "vae"))
    assert opened.readers["clip"].source.startswith(str(folder / "text_encoder"))


def test_a_folder_with_two_transformers_asks_which(files: Path) -> None:
    shutil.copy(files / "flux1-dev.safetensors", files / "flux1-other.safetensors")
    with pytest.raises(CheckpointError, match=r"flux1-dev\.safetensors and flux1-other\.safetensors both hold a trans"):
        open_quietly(files)
    shutil.copy(files / "flux1-dev.json", files / "flux1-other.json")
    assert open_quietly(files / "flux1-other.safetensors").id == "flux1-other"


def test_a_damaged_file_beside_the_model_is_named(files: Path) -> None:
    path = files / "ae.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"no autoencoder(.|\n)*ae.safetensors.*cut short"):
        open_quietly(files)


def test_files_are_told_apart_by_content(files: Path) -> None:
    for old, new in (("flux1-dev", "x"), ("ae", "flux1-dev"), ("clip_l", "ae"), ("t5xxl", "clip_l")):
        for suffix in (".safetensors", ".json"):
            (files / old).with_suffix(suffix).rename((files / new).with_suffix(suffix))
    assert open_quietly(files).readers["transformer"].source.endswith("x.safetensors")


@pytest.mark.fault(50)
@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        (
            "transformer",
            lambda t: t.pop("transformer_blocks.1.attn.to_k.bias"),
            "missing transformer_blocks.1.attn.to_k",
        ),
        ("transformer", lambda t: t.update(stray=torch.ones(2)), "unexpected stray"),
        (
            "transformer",
            lambda t: t.update({"x_embedder.bias": torch.ones(65)}),
            r"img_in.bias is \(65,\), expected \(64,\)",
        ),
        (
            "transformer",
            lambda t: t.update({"transformer_blocks.0.attn.to_q.weight": torch.ones(64, 63)}),
            "cannot be stacked",
        ),
        (
            "transformer",
            lambda t: t.update({"x_embedder.bias": torch.ones(64, dtype=torch.int32)}),
            "img_in.bias holds torch.int32, expected floating",
        ),
        ("vae", lambda t: t.pop("encoder.conv_out.bias"), "missing encoder.conv_out.bias"),
        ("text_encoder", lambda t: t.pop("text_model.final_layer_norm.bias"), "missing final_layer_norm.bias"),
        ("text_encoder_2", lambda t: t.pop("encoder.block.0.layer.1.DenseReluDense.wo.weight"), "missing .*wo.weight"),
        ("text_encoder_2", lambda t: t.update({"lm_head.weight": torch.ones(2)}), "unexpected lm_head.weight"),
        ("transformer", lambda t: {key: t[key] for key in t if "single" not in key}, "num_single_layers is 3 .* 0 by"),
        (
            "transformer",
            lambda t: {"a": torch.ones(1)},
            "holds no network of .* that fluxserve knows; it holds a",
        ),
    ],
)
def test_tensors_must_be_exactly_those_of_the_network(
    folder: Path, part: str, change: Callable[[dict[str, Tensor]], object], says: str
) -> None:
    def apply(tensors: dict[str, Tensor]) -> object:
        changed = change(tensors)
        return changed if isinstance(changed, dict) else None

    path = next((folder / part).glob("*.safetensors"))
    rewrite(path, apply)
    with pytest.raises(CheckpointError, match=says) as raised:
        open_quietly(folder)
    assert str(folder) in raised.value.message


@pytest.mark.fault(50)
def test_only_five_differences_are_named(folder: Path) -> None:
    rewrite(folder / "vae" / WEIGHTS, lambda t: {key: t[key] for key in t if ".conv2." not in key or "down" not in key})
    with pytest.raises(CheckpointError) as raised:
        open_quietly(folder)
    assert raised.value.message.count("missing") == 5
    assert "and 3 more" in raised.value.message


@pytest.mark.parametrize(
    ("part", "field", "value", "says"),
    [
        ("transformer", "num_attention_heads", 2, "num_attention_heads is 2 in its config, 4 by its tensors"),
        ("transformer", "joint_attention_dim", 41, "joint_attention_dim is 41"),
        ("transformer", "axes_dims_rope", [4, 6, 8], "axes_dims_rope"),
        ("transformer", "axes_dims_rope", [16, 0, 0], "axes_dims_rope"),
        ("vae", "norm_num_groups", 5, "norm_num_groups 5 does not divide"),
        ("vae", "block_out_channels", [16, 32, 32, 64], "block_out_channels"),
        ("text_encoder_2", "d_kv", 9, "d_kv is 9"),
        ("text_encoder", "num_attention_heads", 7, "num_attention_heads 7 does not divide"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(
    folder: Path, part: str, field: str, value: object, says: str
) -> None:
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(CheckpointError, match=says):
        open_quietly(folder)


def test_networks_that_do_not_fit_together_are_refused(folder: Path) -> None:
    rewrite(
        folder / "transformer" / WEIGHTS,
        lambda t: t.update({"context_embedder.weight": torch.ones(64, 48)}),
    )
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"joint_attention_dim": 48}))
    with pytest.raises(CheckpointError, match="T5's width is 40, the transformer takes 48"):
        open_quietly(folder)


def _widen_input(files: Path, columns: int, name: str = "flux1-dev") -> None:
    (files / "flux1-dev.safetensors").rename(files / f"{name}.safetensors")
    rewrite(files / f"{name}.safetensors", lambda t: t.update({"img_in.weight": torch.ones(64, columns)}))
    config = json.loads((files / "flux1-dev.json").read_text())
    (files / "flux1-dev.json").unlink()
    (files / f"{name}.json").write_text(json.dumps(config | {"in_channels": columns}))


@pytest.mark.parametrize(
    ("columns", "name", "variant"),
    [(384, "a", "fill"), (128, "flux1-canny-dev", "canny"), (128, "flux1-depth-dev", "depth"), (128, "a", "canny")],
)
def test_models_that_draw_from_pictures_are_told_by_their_input(
    files: Path, columns: int, name: str, variant: str
) -> None:
    _widen_input(files, columns, name)
    assert open_quietly(files).variant.name == variant


def test_a_folder_that_lends_its_encoders_does_not_tell_what_the_model_is(files: Path, folder: Path) -> None:
    """Fill beside dev's encoders: one is a FluxFillPipeline, the other a FluxPipeline."""
    _widen_input(files, 384)
    transformer = files.parent / "alone" / "a.safetensors"
    transformer.parent.mkdir()
    for ending in (".safetensors", ".json"):
        (files / "flux1-dev").with_suffix(ending).rename(transformer.with_suffix(ending))
    assert open_checkpoint(str(transformer), str(folder), lambda *_: None).variant.name == "fill"


@pytest.mark.parametrize("columns", [196, 192, 32, 65])
def test_inputs_that_no_model_has_are_refused(files: Path, columns: int) -> None:
    _widen_input(files, columns)
    with pytest.raises(
        CheckpointError, match=f"{columns} input channels; those that fluxserve knows have 64, 128, 384"
    ):
        open_quietly(files)


@pytest.mark.parametrize("name", ["FluxFillPipeline", "FluxControlPipeline"])
def test_a_folder_whose_transformer_is_of_another_pipeline_is_refused(folder: Path, name: str) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(CheckpointError, match=f"has 64 input channels, those of no {name}"):
        open_quietly(folder)


@pytest.mark.fault(51)
def test_a_config_cannot_ask_for_a_class(folder: Path) -> None:
    """What it names is never looked up; sizes alone are read of it."""
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "evil.Model"}}))
    assert open_quietly(folder).architecture.sizes.clip == TINY.clip


@pytest.mark.parametrize("method", ["torchao", "quanto", "modelopt", "auto-round", "sdnq"])
def test_quantised_folders_that_cannot_be_read_are_refused_by_name(folder: Path, method: str) -> None:
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": method}}))
    with pytest.raises(CheckpointError, match=rf"quantised by {method}.*use the bfloat16"):
        open_quietly(folder)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["blocks.0.qkv.qweight", "blocks.0.qkv.wscales", "blocks.0.qkv.smooth_factor"], "nunchaku"),
        (["a.encoded_exponent", "a.sign_mantissa", "a.luts"], "DFloat11"),
        (["a.weight", "a.SCB"], "LLM.int8"),
        (["distilled_guidance_layer.in_proj.bias"], "Chroma"),
        (["decoder.layers.0.weight"], "TAEF1"),
        (["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"], "LoRA"),
        (["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"], "LoRA"),
    ],
)
def test_foreign_files_are_refused_by_name(tmp_path: Path, keys: list[str], says: str) -> None:
    save_file({key: torch.ones(2, 2) for key in keys}, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=says):
        components(SafetensorsFile(tmp_path / "file.safetensors"))


def test_longcat_is_refused_by_its_text_width(tmp_path: Path) -> None:
    save_file({"txt_in.weight": torch.ones(2, 3584)}, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match="LongCat"):
        components(SafetensorsFile(tmp_path / "file.safetensors"))


@pytest.mark.parametrize(
    "name",
    ["StableDiffusionXLPipeline", "FluxImg2ImgPipeline", "Flux2Pipeline"],
)
def test_other_pipelines_are_refused_by_name(folder: Path, name: str) -> None:
    """Those that draw from pictures too: they would open as dev, and draw something else."""
    path = folder / "model_index.json"
    path.write_text(json.dumps({"_class_name": name}))
    with pytest.raises(CheckpointError, match=rf"describes a {name}; fluxserve draws with .*FLUX\.1 \(FluxPipeline, "):
        open_quietly(folder)


@pytest.mark.parametrize("names", [("encoder.embed_tokens.weight",), ("shared.weight", "encoder.embed_tokens.weight")])
def test_t5_files_hold_the_embedding_under_either_name(folder: Path, names: tuple[str, ...]) -> None:
    path = folder / "text_encoder_2" / "model.safetensors"
    table = load_file(path)["shared.weight"].clone()
    rewrite(
        path,
        lambda t: {key: t[key] for key in t if key != "shared.weight"} | {name: table.clone() for name in names},
    )
    assert torch.equal(open_quietly(folder).readers["t5"].read("shared.weight"), table)


def test_clip_files_may_hold_what_flux_does_not_use(folder: Path) -> None:
    extras = {"text_model.embeddings.position_ids": torch.arange(77)[None], "text_projection.weight": torch.ones(2, 2)}
    rewrite(folder / "text_encoder" / "model.safetensors", lambda t: t | extras)
    assert len(open_quietly(folder).readers["clip"].keys()) == 36


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "transformer.", "base_model.model."])
def test_prefixed_files_are_read(files: Path, prefix: str) -> None:
    plain = load_file(files / "flux1-dev.safetensors")
    rewrite(files / "flux1-dev.safetensors", lambda t: {prefix + key: tensor for key, tensor in t.items()})
    transformer = open_quietly(files).readers["transformer"]
    assert all(torch.equal(transformer.read(key), plain[key]) for key in plain)


def test_all_in_one_files_are_split(published_widths: Path, tmp_path: Path) -> None:
    prefixes = {
        "flux1-schnell": "model.diffusion_model.",
        "ae": "vae.",
        "t5xxl": "text_encoders.t5xxl.transformer.",
        "clip_l": "text_encoders.clip_l.transformer.",
    }
    whole = {
        prefix + key: tensor
        for name, prefix in prefixes.items()
        for key, tensor in load_file(published_widths / f"{name}.safetensors").items()
    }
    whole["text_encoders.clip_l.transformer.text_projection.weight"] = torch.ones(2, 2)
    extras = {f"text_encoders.{name}.logit_scale": torch.ones(1) for name in ("clip_l", "t5xxl")}
    save_file(whole | extras, tmp_path / "all.safetensors")
    opened, apart = open_quietly(tmp_path / "all.safetensors", published_widths), open_quietly(published_widths)
    assert opened.id == "all"
    for one, other in zip(readers(opened), readers(apart), strict=True):
        assert {key: one.shape(key) for key in one.keys()} == {key: other.shape(key) for key in other.keys()}
        assert all(torch.equal(one.read(key), other.read(key)) for key in one.keys())
    save_file(whole | {"stray": torch.ones(1)}, tmp_path / "all.safetensors")
    with pytest.raises(CheckpointError, match="unexpected stray"):
        open_quietly(tmp_path / "all.safetensors", published_widths)


@pytest.mark.parametrize(
    "model", ["no-such-model", "./missing", "a/b/c/d", "owner/", "ünï/code", "", "~nobody-here/x", "x" * 5000]
)
def test_a_name_of_nothing_says_what_is_allowed(model: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed are demo, demo-untrained, .*schnell, dev"):
        open_quietly(model)
