"""The sizes of FLUX.2 [klein], as published and as random models are made. Plain data.

Follows huggingface/diffusers `models/transformers/transformer_flux2.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fluxserve.models.companions.flux2_autoencoder import FLUX2_AE
from fluxserve.models.companions.qwen3 import Qwen3Params
from fluxserve.models.parts.autoencoder import AutoencoderParams

TEXT_LAYERS = (9, 18, 27)
"""Layers of the text encoder, counted from 1, whose output the transformer reads; later ones are never run."""


@dataclass(frozen=True)
class Flux2Params:
    """Sizes of one transformer. in_channels: of an image token. context_in_dim: three text states side by side.

    axes_dim: how the head dimension is shared among (time, row, column, text index) by RoPE.
    """

    in_channels: int
    context_in_dim: int
    hidden_size: int
    num_heads: int
    depth: int
    depth_single_blocks: int
    axes_dim: tuple[int, ...]
    guidance_embed: bool

    @property
    def mlp_hidden(self) -> int:
        """Of the gated MLP: three times the width."""
        return 3 * self.hidden_size

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class Flux2Sizes:
    """Sizes of the three networks of one model; they fit together. file_layers: of the text encoder's file."""

    transformer: Flux2Params
    autoencoder: AutoencoderParams
    qwen3: Qwen3Params
    file_layers: int = 36


KLEIN_4B = Flux2Params(
    in_channels=128,
    context_in_dim=7680,
    hidden_size=3072,
    num_heads=24,
    depth=5,
    depth_single_blocks=20,
    axes_dim=(32, 32, 32, 32),
    guidance_embed=False,
)
KLEIN_9B = replace(KLEIN_4B, context_in_dim=12288, hidden_size=4096, num_heads=32, depth=8, depth_single_blocks=24)

QWEN3_4B = Qwen3Params(
    vocab_size=151936, hidden_size=2560, mlp_hidden=9728, num_layers=27, num_heads=32, num_kv_heads=8, head_dim=128
)
QWEN3_8B = replace(QWEN3_4B, hidden_size=4096, mlp_hidden=12288)

FULL = Flux2Sizes(KLEIN_4B, FLUX2_AE, QWEN3_4B)
"""FLUX.2 [klein] 4B as published, without the text encoder's last nine layers."""

FULL_9B = Flux2Sizes(KLEIN_9B, FLUX2_AE, QWEN3_8B)

SLIM = Flux2Sizes(replace(KLEIN_4B, depth=1, depth_single_blocks=4), FLUX2_AE, replace(QWEN3_4B, mlp_hidden=1024))
"""Full width and a fifth of the transformer's depth."""

TINY = Flux2Sizes(
    transformer=Flux2Params(
        in_channels=32,
        context_in_dim=72,
        hidden_size=64,
        num_heads=2,
        depth=2,
        depth_single_blocks=3,
        axes_dim=(8, 8, 8, 8),
        guidance_embed=False,
    ),
    autoencoder=AutoencoderParams(
        in_channels=3, ch=16, ch_mult=(1, 2, 2, 2), num_res_blocks=1, z_channels=8, num_groups=8
    ),
    qwen3=Qwen3Params(
        vocab_size=1024, hidden_size=24, mlp_hidden=40, num_layers=27, num_heads=4, num_kv_heads=2, head_dim=8
    ),
    file_layers=29,
)
"""Every size odd in its own way, to tell them apart: for tests."""

SIZES = {"tiny": TINY, "slim": SLIM, "full": FULL, "full-9b": FULL_9B}
