"""LoRA files for FLUX.2 [klein] in kohya's, ai-toolkit's and diffusers' names change what diffusers changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_kohya_flux2_lora_to_diffusers,
    _convert_non_diffusers_flux2_lora_to_diffusers,
)
from safetensors.torch import save_file
from torch import Tensor

from fluxserve.models.flux2.lora_names import lora_targets
from fluxserve.models.flux2.sizes import TINY
from fluxserve.models.lora_target import LoraTarget
from fluxserve.weights.lora.file import Lora, read_lora
from tests.weights.lora.test_lora import matrices

TARGETS = lora_targets(TINY.transformer)
OWN = {name: target for name, target in TARGETS.items() if name == target.linear}
"""Under their own names: of every Linear one."""
NOT_IN_DIFFUSERS = ("_stream_modulation", "adaLN")
"""Modules whose kohya names its converter drops with a warning."""


def kohya(name: str) -> str:
    return f"lora_unet_{name.replace('.', '_')}"


def named(spell: Callable[[str], str], ends: tuple[str, str], alpha: float | None = None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, target in OWN.items():
        pair = matrices(target, name)
        tensors |= {f"{spell(name)}.{end}.weight": matrix for end, matrix in zip(ends, pair, strict=True)}
        if alpha is not None:
            tensors[f"{spell(name)}.alpha"] = torch.tensor(alpha)
    return tensors


def changes(lora: Lora) -> dict[str, Tensor]:
    """What a LoRA adds to each Linear."""
    rows = {target.linear: target for target in OWN.values()}
    added = {}
    for linear, branches in lora.branches["transformer"].items():
        added[linear] = torch.zeros(rows[linear].rows, rows[linear].columns)
        for branch in branches:
            added[linear][branch.rows] += branch.scale * branch.up @ branch.down
    return added


def read(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path)
    return changes(read_lora(path, TARGETS))


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert theirs
    for linear, change in theirs.items():
        assert torch.allclose(ours[linear], change, atol=1e-4), linear


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_kohyas_names(tmp_path: Path, alpha: float | None) -> None:
    """Every Linear is changed, also those whose keys diffusers drops."""
    tensors = named(kohya, ("lora_down", "lora_up"), alpha)
    ours = read(tmp_path / "a.safetensors", tensors)
    assert ours.keys() == OWN.keys()
    known = {
        key: tensor.clone() for key, tensor in tensors.items() if not any(name in key for name in NOT_IN_DIFFUSERS)
    }
    assert_equal(ours, read(tmp_path / "b.safetensors", _convert_kohya_flux2_lora_to_diffusers(known)))


def test_bfls_names_as_ai_toolkit_and_comfyui_write_them(tmp_path: Path) -> None:
    """But for the last layer's modulation, whose halves diffusers' converter leaves where they are."""
    tensors = named(lambda name: f"diffusion_model.{name}", ("lora_A", "lora_B"))
    ours = read(tmp_path / "a.safetensors", tensors)
    assert ours.keys() == OWN.keys()
    same = {key: tensor.clone() for key, tensor in tensors.items() if "adaLN" not in key}
    theirs = read(tmp_path / "b.safetensors", _convert_non_diffusers_flux2_lora_to_diffusers(same))
    assert theirs.keys() == OWN.keys() - {"final_layer.adaLN_modulation.1"}
    assert_equal(ours, theirs)


def test_every_linear_has_a_name_of_each_tool() -> None:
    spellings: dict[str, set[str]] = {}
    for name, target in TARGETS.items():
        spellings.setdefault(target.linear, set()).add(name.split("_")[0] if name.startswith("lora_") else name)
    assert spellings.keys() == OWN.keys()
    target: LoraTarget
    for name, target in OWN.items():
        assert TARGETS[kohya(name)] == TARGETS[f"diffusion_model.{name}"] == target
