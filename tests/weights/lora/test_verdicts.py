"""What doctor says of a LoRA file is what `--lora` does with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fluxserve.errors import CheckpointError
from fluxserve.models.flux1.lora_names import lora_targets
from fluxserve.models.flux1.sizes import TINY
from fluxserve.models.lora_keys import LOHA
from fluxserve.models.lora_target import LoraTarget
from fluxserve.weights.describe import describe
from fluxserve.weights.lora.file import read_lora
from tests.cli.test_commands import fluxserve
from tests.conftest import MakeCheckpoint
from tests.weights.lora.test_lora import kohya, matrices

Targets = Mapping[str, LoraTarget]
TARGETS = lora_targets(replace(TINY, transformer=replace(TINY.transformer, guidance_embed=True)))
IMG_IN = "diffusion_model.img_in"


def pair(module: str, down: str, up: str, size: tuple[int, int] = (64, 64)) -> dict[str, Tensor]:
    return {f"{module}.{down}": torch.ones(4, size[1]), f"{module}.{up}": torch.ones(size[0], 4)}


def xlabs() -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for module, target in TARGETS.items():
        if ".processor." in module and module.startswith(("double_blocks", "single_blocks")):
            tensors[f"{module}.down.weight"], tensors[f"{module}.up.weight"] = matrices(target, module)
    return tensors


def product(factor: str) -> dict[str, Tensor]:
    """A LoKr of whole factors, 64 x 64."""
    return {f"{factor}1": torch.ones(4, 4), f"{factor}2": torch.ones(16, 16)}


TAKEN = {
    "kohya": kohya(TARGETS, "lora_unet_") | kohya(TARGETS, "lora_te1_") | kohya(TARGETS, "lora_te3_"),
    "comfyui": kohya(TARGETS, "diffusion_model.") | kohya(TARGETS, "text_encoders."),
    "onetrainer": kohya(TARGETS, "lora_transformer_")
    | kohya(TARGETS, "lora_te2_")
    | {"bundle_emb.a.t5": torch.ones(2)},
    "xlabs": xlabs(),
    "peft": pair("base_model.model.x_embedder", "lora_A.weight", "lora_B.weight"),
    "default": pair("transformer.x_embedder", "lora_A.default.weight", "lora_B.default.weight"),
    "adapter": pair("x_embedder", "lora_A.style.weight", "lora_B.style.weight"),
    "old diffusers": pair("transformer.x_embedder", "lora.down.weight", "lora.up.weight"),
    "older diffusers": pair("transformer.x_embedder", "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    "lokr": product("lora_unet_img_in.lokr_w"),
    "lokr, ai-toolkit": product("lycoris_transformer_blocks_0_attn_to_q.lokr_w"),
    "loha": {f"lora_transformer_x_embedder.{name}": torch.ones(64, 64) for name in LOHA},
    "zero": kohya(TARGETS, IMG_IN) | {f"{IMG_IN}.diff_b": torch.zeros(64)},
}
REFUSED = {
    "dora": (
        kohya(TARGETS, IMG_IN) | {f"{IMG_IN}.dora_scale": torch.ones(64, 1)},
        f"{IMG_IN}.dora_scale is DoRA, which fluxserve does not support",
    ),
    "dora, peft": (
        pair("base_model.model.x_embedder", "lora_A.weight", "lora_B.weight")
        | {"base_model.model.x_embedder.lora_magnitude_vector": torch.ones(64)},
        "lora_magnitude_vector is DoRA, which fluxserve does not support",
    ),
    "lokr, dora": (
        product(f"{IMG_IN}.lokr_w") | {f"{IMG_IN}.dora_scale": torch.ones(64, 1)},
        "dora_scale is DoRA, which fluxserve does not support",
    ),
    "lokr, tucker": ({f"{IMG_IN}.lokr_t2": torch.ones(4, 4, 3, 3)}, "is LoKr of a convolution, which fluxserve"),
    "difference": ({f"{IMG_IN}.diff": torch.ones(64, 64)}, "is a full-rank difference, which fluxserve"),
    "bias": (kohya(TARGETS, IMG_IN) | {f"{IMG_IN}.bias": torch.ones(64)}, "is a change of a bias, which"),
    "sdxl": (
        pair("lora_unet_down_blocks_1_attentions_0_proj_in", "lora_down.weight", "lora_up.weight")
        | pair("lora_te2_text_model_encoder_layers_0_mlp_fc1", "lora_down.weight", "lora_up.weight"),
        "no place for: lora_te2_text_model_encoder_layers_0_mlp_fc1",
    ),
    "sd, diffusers": (
        pair("unet.down_blocks.0.attentions.0.proj_in", "lora_A.weight", "lora_B.weight"),
        "no place for: unet.down_blocks.0.attentions.0.proj_in",
    ),
    "stray key": (kohya(TARGETS, IMG_IN) | {"some.thing": torch.ones(2)}, "no place for: some.thing"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_is_called_a_lora(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TAKEN[name], path)
    assert read_lora(path, TARGETS).all_branches
    with pytest.raises(CheckpointError, match=r"is a LoRA with .*FLUX\.1's .*names, .*; give it with --lora"):
        describe(path)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_in_the_same_words(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    tensors, says = REFUSED[name]
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as refused:
        read_lora(path, TARGETS)
    with pytest.raises(CheckpointError) as told:
        describe(path)
    assert says in refused.value.message
    assert says in told.value.message
    assert "give it with --lora" not in told.value.message


def test_the_commands_say_so(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    model, (tensors, says) = str(tiny_checkpoint("dev", "bfl")), REFUSED["sdxl"]
    save_file(tensors, tmp_path / "sdxl.safetensors")
    save_file(xlabs(), tmp_path / "xlabs.safetensors")
    for arguments in ([str(tmp_path / "sdxl.safetensors")], [model, "--lora", str(tmp_path / "sdxl.safetensors")]):
        refused = fluxserve("doctor", *arguments)
        assert refused.returncode == 65
        assert says in " ".join(refused.stderr.decode().split())
    taken = fluxserve("doctor", model, "--lora", str(tmp_path / "xlabs.safetensors"))
    assert taken.returncode == 0, taken.stderr.decode()
