"""The sizes of FLUX.3 image klein, as published and as random models are made. Plain data.

Follows huggingface/diffusers `models/transformers/transformer_flux3.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fluxserve.models.companions.flux2_autoencoder import FLUX2_AE
from fluxserve.models.companions.qwen3 import Qwen3Params
from fluxserve.models.parts.autoencoder import AutoencoderParams

TEXT_LAYERS = (4, 8, 12, 16, 20, 24, 28, 32)
"""Layers of the text encoder, counted from 1, whose output the transformer reads; later ones are never run."""


@dataclass(frozen=True)
class Flux3Params:
    """Sizes of one transformer. in_channels: of an image token. context_in_dim: eight text states side by side.

    depth: blocks that image, references and text each pass alone. axes_dim: how the head dimension is shared among
    (time, row, column, text index or reference) by RoPE. flow_map: distilled to know where each step leads.
    """

    in_channels: int
    context_in_dim: int
    hidden_size: int
    num_heads: int
    depth: int
    depth_single_blocks: int
    axes_dim: tuple[int, ...]
    flow_map: bool

    @property
    def mlp_hidden(self) -> int:
        """Of the gated MLP: three times the width."""
        return 3 * self.hidden_size

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class Flux3Sizes:
    """Sizes of the three networks of one model; they fit together. file_layers: of the text encoder's file."""

    transformer: Flux3Params
    autoencoder: AutoencoderParams
    qwen3_vl: Qwen3Params
    file_layers: int = 36

    def of(self, variant: str) -> Flux3Sizes:
        """Those of a variant: base is no flow map."""
        return replace(self, transformer=replace(self.transformer, flow_map="base" not in variant))


FLUX3_KLEIN = Flux3Params(
    in_channels=128,
    context_in_dim=20480,
    hidden_size=3072,
    num_heads=24,
    depth=5,
    depth_single_blocks=28,
    axes_dim=(32, 32, 32, 32),
    flow_map=True,
)
QWEN3_VL_4B = Qwen3Params(
    vocab_size=151936, hidden_size=2560, mlp_hidden=9728, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128
)

FULL = Flux3Sizes(FLUX3_KLEIN, FLUX2_AE, QWEN3_VL_4B)
"""FLUX.3 image klein as published, without the text encoder's last four layers."""

SLIM = Flux3Sizes(replace(FLUX3_KLEIN, depth=1, depth_single_blocks=4), FLUX2_AE, replace(QWEN3_VL_4B, mlp_hidden=1024))
"""Full width and a sixth of the transformer's depth."""

TINY = Flux3Sizes(
    transformer=Flux3Params(
        in_channels=32,
        context_in_dim=192,
        hidden_size=64,
        num_heads=2,
        depth=2,
        depth_single_blocks=3,
        axes_dim=(4, 12, 8, 8),
        flow_map=True,
    ),
    autoencoder=AutoencoderParams(
        in_channels=3, ch=16, ch_mult=(1, 2, 2, 2), num_res_blocks=1, z_channels=8, num_groups=8
    ),
    qwen3_vl=Qwen3Params(
        vocab_size=1024, hidden_size=24, mlp_hidden=40, num_layers=32, num_heads=4, num_kv_heads=2, head_dim=8
    ),
    file_layers=34,
)
"""Every size odd in its own way, to tell them apart: for tests."""

SIZES = {"tiny": TINY, "slim": SLIM, "full": FULL}
