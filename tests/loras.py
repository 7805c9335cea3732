"""LoRA files for the tiny model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fluxserve.models.flux1.lora_names import lora_targets
from fluxserve.models.flux1.sizes import TINY

RANK = 2
PREFIXES = {"style": ("lora_unet_double", "lora_unet_single"), "words": ("lora_te1_",), "light": ("lora_unet_time_in",)}
"""A LoRA of the blocks, one of a text encoder, one of a modulation's input."""


def write_loras(folder: Path) -> Path:
    """A file for each of PREFIXES. Returns the folder."""
    for name, prefixes in PREFIXES.items():
        save_file(low_rank(prefixes, "lora_down", "lora_up"), folder / f"{name}.safetensors")
    return folder


def low_rank(prefixes: tuple[str, ...], down_name: str, up_name: str) -> dict[str, Tensor]:
    """A change of every module of the tiny model whose name in a LoRA file begins so."""
    generator = torch.Generator().manual_seed(5)
    tensors: dict[str, Tensor] = {}
    for module, target in lora_targets(TINY).items():
        if module.startswith(prefixes):
            down = torch.randn(RANK, target.columns, generator=generator) / target.columns**0.5
            up = 0.3 * torch.randn(target.rows, RANK, generator=generator)
            tensors |= {f"{module}.{down_name}.weight": down, f"{module}.{up_name}.weight": up}
    return tensors
