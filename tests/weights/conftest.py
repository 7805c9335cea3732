"""A small model in the published head widths, which needs no configs beside its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from fluxserve.models.companions.flux1_autoencoder import FLUX1_AE
from fluxserve.models.flux1.sizes import CLIP_L, FLUX1, T5_XXL, ModelSizes
from fluxserve.models.flux1.synthetic import synthetic_model
from fluxserve.models.synthetic import Layout, Packing
from fluxserve.weights.synthetic.write import write_networks

PUBLISHED_WIDTHS = ModelSizes(
    transformer=replace(
        FLUX1,
        vec_in_dim=64,
        context_in_dim=256,
        hidden_size=256,
        mlp_hidden=1024,
        num_heads=2,
        depth=1,
        depth_single_blocks=1,
    ),
    autoencoder=replace(FLUX1_AE, ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1),
    t5=replace(T5_XXL, d_model=256, d_ff=512, num_layers=1, num_heads=4, vocab_size=512),
    clip=replace(CLIP_L, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=1),
)
"""Heads of 128 and axes (16, 56, 56); every matrix of the transformer and of T5 packs into blocks of 256."""


PackedModel = Callable[[Packing, Layout], Path]


@pytest.fixture(scope="session")
def published_widths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its single files, without configs."""
    folder = tmp_path_factory.mktemp("published") / "model"
    write_networks(folder, synthetic_model(PUBLISHED_WIDTHS, "schnell", "bfl", "bf16"), seed=2)
    for config in folder.glob("*.json"):
        config.unlink()
    return folder


@pytest.fixture(scope="session")
def plain(published_widths: Path) -> dict[str, Tensor]:
    """Its bfloat16 transformer, in BFL's names."""
    return load_file(published_widths / "flux1-schnell.safetensors")


@pytest.fixture(scope="session")
def packed_model(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    """packed_model(packing, layout) -> the folder of the same model, packed; each kind is written once."""
    made: dict[tuple[Packing, Layout], Path] = {}

    def make(packing: Packing, layout: Layout) -> Path:
        if (packing, layout) not in made:
            folder = tmp_path_factory.mktemp("packed") / f"{packing}-{layout}"
            write_networks(folder, synthetic_model(PUBLISHED_WIDTHS, "schnell", layout, packing), seed=2)
            made[packing, layout] = folder
        return made[packing, layout]

    return make
