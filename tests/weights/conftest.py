"""A small model in the published head widths, which needs no configs beside its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fluxserve.flux.params import FLUX1, FLUX1_AE
from fluxserve.weights.synthetic import write_model
from fluxserve.weights.synthetic_sizes import CLIP_L, T5_XXL, ModelSizes

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


@pytest.fixture(scope="session")
def published_widths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its single files, without configs."""
    folder = tmp_path_factory.mktemp("published") / "model"
    write_model(folder, PUBLISHED_WIDTHS, "schnell", "bfl", seed=2)
    for config in folder.glob("*.json"):
        config.unlink()
    return folder
