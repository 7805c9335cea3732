"""LoHa and LoKr act as in peft and lycoris, in every spelling, merged and beside; what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from peft import LoHaConfig, LoKrConfig, get_peft_model
from peft.tuners.lycoris_utils import LycorisLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fluxserve.errors import CheckpointError
from fluxserve.models.flux1.lora_names import lora_targets
from fluxserve.models.flux1.sizes import TINY
from fluxserve.models.lora_target import LoraTarget
from fluxserve.weights.lora.adapters import adapt
from fluxserve.weights.lora.apply import MergedReader, side_branches, weigh
from fluxserve.weights.lora.branch import Hadamard, Kronecker, LowRank
from fluxserve.weights.lora.file import Lora, read_lora
from tests.conftest import MakeCheckpoint
from tests.weights.lora.test_lora import Targets, _InFloat32, _inputs, built, velocity
from tests.weights.lora.test_strength import EVERY, transformer
from tests.weights.stored_files import open_quietly

CONFIGS: dict[str, LoKrConfig | LoHaConfig] = {
    "lokr": LoKrConfig(r=4, alpha=6),
    "lokr, both decomposed": LoKrConfig(r=2, alpha=3, decompose_both=True),
    "lokr, factor 4": LoKrConfig(r=4, alpha=6, decompose_factor=4),
    "lokr, whole factors": LoKrConfig(r=64, alpha=16),
    "lokr, defaults": LoKrConfig(),
    "lokr, patterns": LoKrConfig(
        r=4, alpha=4, rank_pattern={"to_q": 2, "^proj_out": 64}, alpha_pattern={r".*to_(q|k)": 12, "proj_out": 6}
    ),
    "loha": LoHaConfig(r=4, alpha=6),
    "loha, defaults": LoHaConfig(),
    "loha, a high rank": LoHaConfig(r=48, alpha=12),
    "loha, patterns": LoHaConfig(r=4, alpha=4, rank_pattern={"to_q": 2}, alpha_pattern={"norm1.linear": 1, "to_.": 3}),
}
SPELLINGS: dict[str, Callable[[LoraTarget, str], bool]] = {
    "kohya": lambda _, name: name.startswith("lora_unet_"),
    "lycoris": lambda target, name: name == "lycoris_" + target.linear.replace(".", "_"),
    "ai-toolkit, once": lambda _, name: name.startswith("lycoris_") and "_attn_to_" in name,
    "ai-toolkit, today, and comfyui": lambda target, name: name == f"diffusion_model.{target.linear}",
    "onetrainer": lambda _, name: name.startswith("lora_transformer_"),
    "diffusers": lambda target, name: (
        name.startswith("transformer.") and ".processor." not in name and name != f"transformer.{target.linear}"
    ),
    "text encoders": lambda _, name: name.startswith(("lora_te1_", "lora_te3_")),
}
MODULES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "lokr": (LokrModule, {"lora_dim": 4, "alpha": 2}),
    "lokr, both decomposed": (LokrModule, {"lora_dim": 2, "alpha": 3, "decompose_both": True, "factor": 8}),
    "lokr, whole factors": (LokrModule, {"lora_dim": 1000, "alpha": 2}),
    "lokr, full matrix": (LokrModule, {"lora_dim": 4, "alpha": 2, "full_matrix": True}),
    "lokr, rank-stabilised": (LokrModule, {"lora_dim": 4, "alpha": 2, "rs_lora": True}),
    "lokr, unbalanced": (LokrModule, {"lora_dim": 4, "alpha": 2, "unbalanced_factorization": True}),
    "lokr, scalar": (LokrModule, {"lora_dim": 4, "alpha": 2, "use_scalar": True}),
    "loha": (LohaModule, {"lora_dim": 4, "alpha": 2}),
    "loha, scalar": (LohaModule, {"lora_dim": 4, "alpha": 2, "use_scalar": True}),
}


@pytest.fixture(scope="module")
def tiny() -> Targets:
    return lora_targets(replace(TINY, transformer=replace(TINY.transformer, guidance_embed=True)))


@pytest.fixture(scope="module")
def base(tiny_checkpoint: MakeCheckpoint) -> Path:
    return tiny_checkpoint("dev", "diffusers")


def seeded(model: nn.Module, part: str = "") -> nn.Module:
    """Every parameter whose name holds `part` gets numbers of its own."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def placed_changes(lora: Lora) -> Iterator[tuple[str, int, Tensor]]:
    """(Linear, first row, scaled matrix) of each branch."""
    for network in lora.branches.values():
        for linear, branches in network.items():
            yield from ((linear, branch.first_row, branch.scale * branch.matrix()) for branch in branches)


def assert_alike(lora: Lora, expected: dict[str, Tensor], targets: Targets) -> None:
    found = {(linear, row): matrix for linear, row, matrix in placed_changes(lora)}
    assert len(found) == len(expected)
    for name, change in expected.items():
        target = targets[name]
        whole = torch.cat(change.chunk(2)[::-1]) if target.swap_halves else change
        assert torch.allclose(found[target.linear, target.first_row], whole, atol=1e-5), name


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_of_peft_acts_as_in_peft(base: Path, tiny: Targets, tmp_path: Path, name: str) -> None:
    config = replace(CONFIGS[name], target_modules=set(EVERY))
    model = seeded(get_peft_model(transformer(base), config), "default")
    model.save_pretrained(str(tmp_path))  # type: ignore[operator]
    layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if isinstance(m, LycorisLayer)}
    assert len(layers) > 20
    with torch.no_grad():
        expected = {n: layer.get_delta_weight("default") for n, layer in layers.items()}  # type: ignore[operator]
    assert_alike(read_lora(tmp_path / "adapter_model.safetensors", tiny), expected, tiny)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", MODULES)
def test_what_lycoris_saves_acts_as_in_lycoris(tiny: Targets, tmp_path: Path, name: str, spelling: str) -> None:
    kind, options = MODULES[name]
    tensors: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for module, target in tiny.items():
        if SPELLINGS[spelling](target, module):
            linear = nn.Linear(target.columns, target.rows, bias=False)
            adapter = seeded(kind("x", linear, **options)).eval()
            own = adapter.custom_state_dict()  # type: ignore[operator]
            tensors |= {f"{module}.{key}": tensor.detach().contiguous() for key, tensor in own.items()}
            with torch.no_grad():
                if options.get("rs_lora"):  # whole factors were trained at sqrt(rank), and are loaded at 1
                    adapter = kind.make_module_from_state_dict("x", linear, *map(own.get, kind.weight_list))
                eye = torch.eye(target.columns)
                expected[module] = (adapter(eye) - linear(eye)).T
    assert len(expected) >= 4
    save_file(tensors, tmp_path / "a.safetensors")
    assert_alike(read_lora(tmp_path / "a.safetensors", tiny), expected, tiny)


def test_an_adapters_name_behind_the_matrices(tiny: Targets, tmp_path: Path) -> None:
    factors = {"lokr_w1": torch.randn(8, 8), "lokr_w2": torch.randn(8, 8)}
    for ending in ("", ".default", ".style"):
        save_file(
            {f"base_model.model.x_embedder.{k}{ending}": t for k, t in factors.items()}, tmp_path / "a.safetensors"
        )
        (branch,) = read_lora(tmp_path / "a.safetensors", tiny).all_branches
        assert torch.equal(branch.scale * branch.matrix(), torch.kron(*factors.values()))


@pytest.mark.parametrize("config", [LoKrConfig(r=4, alpha=6), LoHaConfig(r=4, alpha=6)])
def test_pictures_are_peft_s_at_load_and_per_request(
    tiny_checkpoint: MakeCheckpoint,
    tiny: Targets,
    tmp_path: Path,
    config: LoKrConfig | LoHaConfig,
) -> None:
    folder, strength = tiny_checkpoint("dev", "diffusers"), 0.5
    model: Any = seeded(get_peft_model(transformer(folder), replace(config, target_modules=set(EVERY))), "default")
    (tmp_path / "style").mkdir()
    model.save_pretrained(str(tmp_path / "style"))
    for layer in model.modules():
        if isinstance(layer, LycorisLayer):
            layer.scale_layer(strength)
    expected = diffusers_velocity(model)
    checkpoint = open_quietly(folder)
    _, adapters = adapt(checkpoint, [], str(tmp_path))
    weighted = weigh([(adapters.by_name["style"].branches["transformer"], strength)])
    plain = built(checkpoint, checkpoint.readers["transformer"])
    before = velocity(plain)
    with side_branches(plain, weighted):
        beside = velocity(plain)
    merged = velocity(built(checkpoint, MergedReader(_InFloat32(checkpoint.readers["transformer"]), weighted)))
    assert (expected - before).abs().max() > 0.1
    assert (beside - expected).abs().max() <= 1e-4
    assert (merged - expected).abs().max() <= 1e-4
    assert adapters.requestable_values >= sum(
        t.numel() for t in load_file(tmp_path / "style/adapter_model.safetensors").values()
    )


def diffusers_velocity(model: FluxTransformer2DModel) -> Tensor:
    img, txt, pooled, t, guidance = _inputs()
    ids = torch.zeros(16, 3)
    ids[:, 1], ids[:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
    with torch.no_grad():
        return model(img, txt, pooled, t, ids, torch.zeros(8, 3), guidance).sample


@pytest.mark.parametrize("shapes", [((4, 2), (6, 10)), ((24, 1), (1, 20)), ((1, 20), (24, 1)), ((3, 5), (8, 4))])
def test_a_kronecker_product_runs_beside_as_it_is_merged(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    left, right = (torch.randn(shape) for shape in shapes)
    branch = Kronecker(0.5, 2, left, right)
    x = torch.randn(2, 3, 20)
    assert torch.allclose(branch.answer(x), x @ torch.kron(left, right).T, atol=1e-4)
    swapped = branch.halves_swapped()
    assert torch.allclose(swapped.matrix(), torch.cat(branch.matrix().chunk(2)[::-1]), atol=1e-6)
    assert isinstance(swapped, LowRank) == (left.shape[0] % 2 == 1)
    weight = torch.zeros(30, 20)
    branch.add_to(weight, 2.0)
    assert torch.allclose(weight[2:26], torch.kron(left, right), atol=1e-6)
    assert not weight[:2].any()
    assert not weight[26:].any()


def test_a_hadamard_product_runs_beside_as_it_is_merged() -> None:
    branch = Hadamard(0.5, 0, torch.randn(6, 2), torch.randn(2, 5), torch.randn(6, 3), torch.randn(3, 5))
    kept = {name: tensor.clone() for name, tensor in branch.tensors.items()}
    x = torch.randn(4, 5)
    assert torch.allclose(branch.answer(x), x @ branch.matrix().T, atol=1e-5)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in branch.tensors.items())


IMG_IN = "diffusion_model.img_in"
REFUSED: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "one factor": ({"lokr_w1": (8, 8)}, "has neither; LoKr takes lokr_w2, or"),
    "half a factor": ({"lokr_w1": (8, 8), "lokr_w2_a": (8, 2)}, r"has lokr_w2_a \(8, 2\); LoKr takes"),
    "a factor twice": ({"lokr_w1": (8, 8), "lokr_w1_a": (8, 2), "lokr_w2": (8, 8)}, "LoKr takes lokr_w1, or"),
    "factors of another size": ({"lokr_w1": (8, 8), "lokr_w2": (8, 4)}, r"sides multiply to \(64, 64\)"),
    "ranks that differ": ({"lokr_w1": (8, 8), "lokr_w2_a": (8, 2), "lokr_w2_b": (3, 8)}, "LoKr takes lokr_w2"),
    "rank 0": ({"lokr_w1": (8, 8), "lokr_w2_a": (8, 0), "lokr_w2_b": (0, 8)}, "LoKr takes lokr_w2"),
    "a convolution's": ({"lokr_w1": (8, 8), "lokr_w2": (8, 8, 3, 3)}, "LoKr takes lokr_w2"),
    "three of four": ({"hada_w1_a": (64, 4), "hada_w1_b": (4, 64), "hada_w2_a": (64, 4)}, "lacks its hada_w2_b matrix"),
    "LoHa of another size": (
        {"hada_w1_a": (64, 4), "hada_w1_b": (4, 64), "hada_w2_a": (64, 4), "hada_w2_b": (4, 32)},
        r"has matrices \(4, 32\) and \(64, 4\)",
    ),
    "two kinds": ({"lokr_w1": (8, 8), "lokr_w2": (8, 8), "lora_down.weight": (4, 64)}, "mixes kinds of matrices"),
    "DoRA": ({"lokr_w1": (8, 8), "lokr_w2": (8, 8), "dora_scale": (64, 1)}, "dora_scale is DoRA, which fluxserve"),
    "Tucker": ({"lokr_w1": (8, 8), "lokr_t2": (4, 4, 3, 3)}, "lokr_t2 is LoKr of a convolution, which fluxserve"),
    "Tucker's LoHa": ({"hada_t1": (4, 4, 3, 3)}, "hada_t1 is LoHa of a convolution, which fluxserve"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(tiny: Targets, tmp_path: Path, name: str) -> None:
    shapes, says = REFUSED[name]
    save_file({f"{IMG_IN}.{key}": torch.ones(shape) for key, shape in shapes.items()}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=says) as raised:
        read_lora(tmp_path / "a.safetensors", tiny)
    assert IMG_IN in raised.value.message


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(tiny: Targets, tmp_path: Path, bad: float) -> None:
    whole = {"lokr_w1": torch.ones(8, 8), "lokr_w2_a": torch.ones(8, 2), "lokr_w2_b": torch.ones(2, 8)}
    for name in (*whole, "alpha"):
        tensors = whole | {name: torch.full_like(whole.get(name, torch.ones(())), bad)}
        save_file({f"{IMG_IN}.{key}": tensor for key, tensor in tensors.items()}, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError, match="finite"):
            read_lora(tmp_path / "a.safetensors", tiny)


def test_a_configuration_of_another_rank_is_refused(tiny: Targets, tmp_path: Path) -> None:
    factors = {"lokr_w1": (8, 8), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 8)}
    save_file(
        {f"base_model.model.x_embedder.{key}": torch.ones(shape) for key, shape in factors.items()},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LOKR", "r": 4, "alpha": 4}))
    with pytest.raises(CheckpointError, match="gives x_embedder the rank 4; its matrices have 2"):
        read_lora(tmp_path / "adapter_model.safetensors", tiny)
