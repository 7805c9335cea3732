"""The sizes of Z-Image, as published and as random models are made. Plain data.

Follows huggingface/diffusers `models/transformers/transformer_z_image.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fluxserve.models.companions.flux1_autoencoder import FLUX1_AE
from fluxserve.models.companions.qwen3 import Qwen3Params
from fluxserve.models.parts.autoencoder import AutoencoderParams

TEXT_LAYER = 35
"""Layer of the text encoder, counted from 1, whose output the transformer reads: the last but one."""


@dataclass(frozen=True)
class ZImageParams:
    """Sizes of one transformer. in_channels: of an image token. context_in_dim: width of a text state.

    refiner_depth: blocks that image and text each pass alone. time_hidden, time_width: of the time's embedder.
    axes_dim: how the head dimension is shared among (text index, row, column) by RoPE.
    """

    in_channels: int
    context_in_dim: int
    hidden_size: int
    mlp_hidden: int
    num_heads: int
    depth: int
    refiner_depth: int
    time_hidden: int
    time_width: int
    axes_dim: tuple[int, ...]

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class ZImageSizes:
    """Sizes of the three networks of one model; they fit together. file_layers: of the text encoder's file."""

    transformer: ZImageParams
    autoencoder: AutoencoderParams
    qwen3: Qwen3Params
    file_layers: int = TEXT_LAYER + 1


Z_IMAGE = ZImageParams(
    in_channels=64,
    context_in_dim=2560,
    hidden_size=3840,
    mlp_hidden=10240,
    num_heads=30,
    depth=30,
    refiner_depth=2,
    time_hidden=1024,
    time_width=256,
    axes_dim=(32, 48, 48),
)
QWEN3_4B = Qwen3Params(
    vocab_size=151936,
    hidden_size=2560,
    mlp_hidden=9728,
    num_layers=TEXT_LAYER,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
)

FULL = ZImageSizes(Z_IMAGE, FLUX1_AE, QWEN3_4B)
"""Z-Image as published, without the text encoder's last layer."""

SLIM = ZImageSizes(replace(Z_IMAGE, depth=4, refiner_depth=1), FLUX1_AE, replace(QWEN3_4B, mlp_hidden=1024))
"""Full width and a seventh of the transformer's depth."""

TINY = ZImageSizes(
    transformer=ZImageParams(
        in_channels=32,
        context_in_dim=32,
        hidden_size=96,
        mlp_hidden=256,
        num_heads=4,
        depth=3,
        refiner_depth=2,
        time_hidden=1024,
        time_width=96,
        axes_dim=(4, 8, 12),
    ),
    autoencoder=AutoencoderParams(
        in_channels=3, ch=16, ch_mult=(1, 2, 2, 2), num_res_blocks=1, z_channels=8, num_groups=8
    ),
    qwen3=Qwen3Params(
        vocab_size=1024,
        hidden_size=32,
        mlp_hidden=40,
        num_layers=TEXT_LAYER,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
    ),
)
"""Every size odd in its own way, to tell them apart: for tests."""

SIZES = {"tiny": TINY, "slim": SLIM, "full": FULL}
