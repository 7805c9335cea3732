"""How strongly LoRAs act: as in peft, whatever file tells it, at load and per request; what is unsound is refused."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline as DiffusersPipeline
from diffusers import FluxTransformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor, nn

from fluxserve.errors import CheckpointError
from fluxserve.models.flux1.lora_names import lora_targets
from fluxserve.models.flux1.sizes import TINY
from fluxserve.models.lora_target import LoraTarget
from fluxserve.weights.lora import strength
from fluxserve.weights.lora.adapters import adapt, lora_files
from fluxserve.weights.lora.apply import side_branches, weigh
from fluxserve.weights.lora.file import Lora, read_lora
from tests.conftest import MakeCheckpoint
from tests.weights.lora.test_lora import built, kohya, velocity
from tests.weights.stored_files import open_quietly

pytestmark = pytest.mark.filterwarnings("ignore:The following .* keys did not match:RuntimeWarning")

Targets = Mapping[str, LoraTarget]
EVERY = ["to_q", "to_k", "to_v", "proj_out", "proj_mlp", "linear", "x_embedder", "net.0.proj", "linear_1"]

CONFIGS: dict[str, dict[str, Any]] = {
    "alpha": {"r": 4, "lora_alpha": 6},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "defaults": {},
    "anchored": {"r": 4, "lora_alpha": 4, "alpha_pattern": {"^proj_out": 12}},
    "end": {"r": 4, "lora_alpha": 4, "alpha_pattern": {"proj_out": 12, "attn.to_q": 2}},
    "not an end": {"r": 4, "lora_alpha": 4, "alpha_pattern": {"out": 12, "to_": 2, "transformer_blocks": 3}},
    "expressions": {
        "r": 4,
        "lora_alpha": 4,
        "alpha_pattern": {
            r"^single_transformer_blocks\.\d+\.attn\.to_(q|k)": 12,
            "transformer_blocks.*to_v": 2,
            "[^.]+_mlp|norm1.linear": 1.5,
            "(?i:X_EMBEDDER)": 9,
        },
    },
    "first wins": {"r": 4, "lora_alpha": 4, "alpha_pattern": {".*to_q": 12, "attn.to_q": 2, "to_.": 3}},
    "ranks": {"r": 4, "lora_alpha": 4, "rank_pattern": {"to_q": 2, "^proj_out": 3, r"transformer_blocks\.1\..*": 1}},
    "both": {
        "r": 4,
        "lora_alpha": 4,
        "use_rslora": True,
        "rank_pattern": {"to_q": 2, "to_(k|v)": 3},
        "alpha_pattern": {r"single_transformer_blocks\.\d\.attn\.to_q": 5, "^x_embedder": 7},
    },
}


@pytest.fixture(scope="module")
def tiny() -> Targets:
    return lora_targets(replace(TINY, transformer=replace(TINY.transformer, guidance_embed=True)))


@pytest.fixture(scope="module")
def base(tiny_checkpoint: MakeCheckpoint) -> Path:
    return tiny_checkpoint("dev", "diffusers")


def transformer(base: Path) -> FluxTransformer2DModel:
    return FluxTransformer2DModel.from_pretrained(  # type: ignore[no-untyped-call,no-any-return]
        base / "transformer", dtype=torch.float32
    )


def trained(model: nn.Module) -> nn.Module:
    """Every up matrix gets numbers: peft begins with zeros."""
    generator = torch.Generator().manual_seed(11)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def assert_as_peft(model: nn.Module, lora: Lora, targets: Targets) -> None:
    """Each module's strength, and what it adds to the fused Linear."""
    layers = {
        name.removeprefix("base_model.model."): m for name, m in model.named_modules() if isinstance(m, LoraLayer)
    }
    assert len(layers) > 20
    assert len(lora.all_branches) == len(layers)
    for name, layer in layers.items():
        (adapter,) = layer.scaling
        target = targets[name]
        branch = next(
            b
            for b in lora.branches["transformer"][target.linear]
            if b.first_row == target.first_row  # type: ignore[index]
        )
        assert branch.scale == pytest.approx(layer.scaling[adapter], abs=1e-5), name
        change = layer.get_delta_weight(adapter)
        expected = torch.cat(change.chunk(2)[::-1]) if target.swap_halves else change
        assert torch.allclose(branch.scale * branch.up @ branch.down, expected, atol=1e-5), name


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_of_peft_acts_as_in_peft(base: Path, tiny: Targets, tmp_path: Path, name: str) -> None:
    model = trained(get_peft_model(transformer(base), LoraConfig(**CONFIGS[name], target_modules=EVERY)))
    assert isinstance(model, PeftModel)
    model.save_pretrained(str(tmp_path / "style"))
    assert_as_peft(model, read_lora(lora_files(str(tmp_path))["style"], tiny), tiny)
    (tmp_path / "style" / "adapter_model.safetensors").rename(tmp_path / "style" / "renamed.safetensors")
    assert_as_peft(model, read_lora(tmp_path / "style" / "renamed.safetensors", tiny), tiny)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_diffusers_saves_acts_as_in_peft(base: Path, tiny: Targets, tmp_path: Path, name: str) -> None:
    model = transformer(base)
    model.add_adapter(LoraConfig(**CONFIGS[name], target_modules=EVERY))
    trained(model)
    layers = get_peft_model_state_dict(model)
    DiffusersPipeline.save_lora_weights(
        str(tmp_path),
        transformer_lora_layers=layers,
        transformer_lora_adapter_metadata=model.peft_config["default"].to_dict(),
    )
    assert_as_peft(model, read_lora(tmp_path / "pytorch_lora_weights.safetensors", tiny), tiny)
    model.save_lora_adapter(str(tmp_path / "own"), adapter_name="default")
    assert_as_peft(model, read_lora(tmp_path / "own" / "pytorch_lora_weights.safetensors", tiny), tiny)


@pytest.mark.parametrize("alphas", [True, False])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_mixed_ranks_saved_again_by_diffusers_act_the_same(
    base: Path, tiny: Targets, tmp_path: Path, alphas: bool
) -> None:
    config = CONFIGS["both"] | {"use_rslora": False}
    source = transformer(base)
    source.add_adapter(LoraConfig(**config, target_modules=EVERY))
    adapter = get_peft_model_state_dict(trained(source))
    given = {
        f"transformer.{key.removesuffix('.lora_A.weight')}.alpha": 2.0 + len(key) % 3
        for key in adapter
        if "lora_A" in key
    }
    again = transformer(base)
    prefixed = {f"transformer.{key}": tensor for key, tensor in adapter.items()}
    again.load_lora_adapter(prefixed, network_alphas=given if alphas else None, prefix="transformer", adapter_name="a")
    again.save_lora_adapter(str(tmp_path), adapter_name="a")
    lora = read_lora(tmp_path / "pytorch_lora_weights.safetensors", tiny)
    assert_as_peft(again, lora, tiny)
    assert len({branch.scale for branch in lora.all_branches}) > (3 if alphas else 0)


def test_the_strength_holds_at_load_and_per_request(base: Path, tiny: Targets, tmp_path: Path) -> None:
    model = trained(get_peft_model(transformer(base), LoraConfig(**CONFIGS["both"], target_modules=EVERY)))
    model.save_pretrained(str(tmp_path / "style"))  # type: ignore[operator]
    checkpoint = open_quietly(base)
    merged, _ = adapt(checkpoint, [f"{tmp_path / 'style'}:0.5"], None)
    _, adapters = adapt(checkpoint, [], str(tmp_path))
    plain = built(checkpoint, checkpoint.readers["transformer"])
    before = velocity(plain)
    with side_branches(plain, weigh([(adapters.by_name["style"].branches["transformer"], 0.5)])):
        beside = velocity(plain)
    at_load = velocity(built(merged, merged.readers["transformer"]))
    assert (beside - before).abs().max() > 0.05
    assert (at_load - beside).abs().max() < 0.1 * (beside - before).abs().max()  # merged into bfloat16 weights
    layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    for name in ("x_embedder", "single_transformer_blocks.0.attn.to_k", "transformer_blocks.1.norm1.linear"):
        target, change = tiny[name], 0.5 * layers[name].get_delta_weight("default")
        key, rows = f"{target.linear}.weight", slice(target.first_row, target.first_row + target.rows)
        stored = checkpoint.readers["transformer"].read(key)
        expected = (stored[rows].float() + change).to(stored.dtype)
        assert torch.allclose(
            merged.readers["transformer"].read(key)[rows].float(), expected.float(), atol=1e-5, rtol=1e-2
        )


def test_a_file_of_peft_without_its_configuration_is_told_of(
    tiny: Targets, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = kohya(tiny, "base_model.model.img_in", alpha=None)
    save_file(
        {key.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): t for key, t in tensors.items()},
        tmp_path / "a.safetensors",
    )
    assert read_lora(tmp_path / "a.safetensors", tiny).all_branches[0].scale == 1
    assert "no adapter_config.json beside it" in caplog.text


def configured(tiny: Targets, folder: Path, config: object) -> Lora:
    tensors = kohya(tiny, "base_model.model.img_in", alpha=None)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return read_lora(folder / "adapter_model.safetensors", tiny)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"lora_alpha": math.nan}, "lora_alpha must be a finite number, got nan"),
        ('{"lora_alpha": 1e999}', "lora_alpha must be a finite number, got inf"),
        ({"lora_alpha": "8"}, "lora_alpha must be a finite number, got 8"),
        ({"lora_alpha": True}, "lora_alpha must be a finite number, got True"),
        ({"r": [4]}, "r must be a finite number"),
        ({"r": 8}, "gives img_in the rank 8; its matrices have 4"),
        ({"r": 8, "rank_pattern": {"other": 4}}, "gives img_in the rank 8"),
        ({"alpha_pattern": {"img_in": -math.inf}}, "img_in must be a finite number, got -inf"),
        ({"alpha_pattern": ["img_in"]}, "alpha_pattern must map patterns to numbers"),
        ({"alpha_pattern": {"(img_in": 3}}, r"'\(img_in' is no regular expression"),
        ({"alpha_pattern": {"a" * 301: 3}}, "a pattern has 301 characters, allowed are 300"),
        ({"use_dora": True}, "is DoRA, which fluxserve does not support"),
        ({"peft_type": "OFT"}, "is OFT, which"),
        ({"init_lora_weights": "pissa_niter_16"}, "began as pissa_niter_16"),
        ("[]", "holds no JSON object"),
        ("{", "holds no valid JSON"),
    ],
)
def test_unsound_configurations_are_refused_by_field(tiny: Targets, tmp_path: Path, config: object, says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as raised:
        configured(tiny, tmp_path, config)
    assert "adapter_config.json" in raised.value.message


@pytest.mark.parametrize("pattern", [r"((\w|.)*)*[^\x00-\xff]", r"(\w|.)*(\w|.)*(\w|.)*(\w|.)*(\w|.)*(?!)q"])
def test_a_pattern_that_explodes_is_refused_within_seconds(
    tiny: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """Python's own `re` takes longer than the age of the universe for these."""
    monkeypatch.setattr(strength, "MATCHING_SECONDS", 0.5)
    module = "base_model.model.single_transformer_blocks.0.attn.to_q"
    save_file(kohya(tiny, module, alpha=None), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"alpha_pattern": {pattern: 3}}))
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="alpha_pattern: a pattern takes too long to match"):
        read_lora(tmp_path / "adapter_model.safetensors", tiny)
    assert time.monotonic() - started < 30


PIECES = st.sampled_from(
    ["to_q", "proj_out", ".", r"\.", ".*", "^", "$", "[a-z]+", r"\d", "(q|k)", "attn", "1", "_?", "x"]
)
NAMES = st.lists(st.sampled_from(["to_q", "proj_out", "attn", "x", "1", "blocks"]), min_size=1, max_size=4).map(
    ".".join
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=5).map("".join), NAMES)
def test_patterns_match_as_in_peft(pattern: str, name: str) -> None:
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except re.error:
        return
    expected = 2.0 if get_pattern_key([pattern], name) == pattern and re.match(rf"(.*\.)?({pattern})$", name) else 1.0
    assert strength.Patterns("a file", "alpha_pattern", {pattern: 2.0}).first(name, 1.0) == expected


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"alpha": torch.tensor(math.nan)}, "alpha of lora_unet_img_in is nan, expected a finite number"),
        ({"alpha": torch.tensor(math.inf)}, "alpha of lora_unet_img_in is inf"),
        ({"alpha": torch.tensor(-math.inf, dtype=torch.bfloat16)}, "alpha of lora_unet_img_in is -inf"),
        ({"lora_down.weight": torch.ones(0, 64), "lora_up.weight": torch.ones(64, 0)}, "of a rank of at least 1"),
        ({"lora_down.weight": torch.tensor(1.0)}, r"has matrices \(\) and"),
        ({"lora_down.weight": torch.ones(64)}, r"has matrices \(64,\) and"),
        ({"lora_up.weight": torch.full((64, 4), math.nan)}, "not all finite"),
        ({"lora_up.weight": torch.full((64, 4), math.inf, dtype=torch.float16)}, "not all finite"),
        ({"lora_down.weight": torch.ones(4, 64, dtype=torch.int32)}, "not all finite floating point"),
        ({"lora_A.weight": torch.ones(4, 64)}, "are the same matrix twice"),
        ({"lora_A.one.weight": torch.ones(4, 64)}, "are the same matrix twice"),
    ],
)
def test_unsound_numbers_are_refused_at_load(tiny: Targets, tmp_path: Path, edit: dict[str, Tensor], says: str) -> None:
    tensors = kohya(tiny, "lora_unet_img_in") | {f"lora_unet_img_in.{key}": tensor for key, tensor in edit.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=says):
        read_lora(tmp_path / "a.safetensors", tiny)


def test_what_becomes_of_the_file_later_changes_nothing(tiny: Targets, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(kohya(tiny, "lora_unet_"), path)
    before = {branch: (branch.down.clone(), branch.up.clone()) for branch in read_lora(path, tiny).all_branches}
    lora, raw = read_lora(path, tiny), path.read_bytes()
    for content in (bytes(len(raw)), raw[:100], b"", raw * 2):
        with path.open("r+b") as file:  # in place, as a copy over it does
            file.truncate(0)
            file.write(content)
        for branch, (down, up) in zip(lora.all_branches, before.values(), strict=True):
            assert torch.equal(branch.down, down)
            assert torch.equal(branch.up, up)


def test_a_model_given_as_a_lora_is_refused_unread(tiny: Targets, tmp_path: Path) -> None:
    size = 2**42
    header = json.dumps({"img_in.weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)  # a hole: takes no disk, and would never fit the memory
    with pytest.raises(CheckpointError, match=r"model\.safetensors: holds no LoRA"):
        read_lora(tmp_path / "model.safetensors", tiny)
