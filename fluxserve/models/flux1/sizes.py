"""The sizes of the four networks, as the published models have them and as random ones are made. Plain data.

Follows black-forest-labs/flux `src/flux/util.py` (configs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fluxserve.models.companions.flux1_autoencoder import FLUX1_AE
from fluxserve.models.parts.autoencoder import AutoencoderParams
from fluxserve.request import PictureUse


@dataclass(frozen=True)
class FluxParams:
    """Sizes of one transformer.

    in_channels: width of an image token (64 = 16 latent channels x 2 x 2). vec_in_dim: CLIP's pooled width.
    context_in_dim: T5's width. axes_dim: how the head dimension is shared among (index, row, column) by RoPE.
    """

    in_channels: int
    out_channels: int
    vec_in_dim: int
    context_in_dim: int
    hidden_size: int
    mlp_hidden: int
    num_heads: int
    depth: int
    depth_single_blocks: int
    axes_dim: tuple[int, ...]
    theta: int
    guidance_embed: bool

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def picture(self) -> PictureUse | None:
        return picture_use(self.in_channels, self.out_channels)


INPUT_WIDTHS: Mapping[PictureUse, int] = {"start": 1, "control": 2, "fill": 6}
"""How wide an input token is, in widths of an output token."""


def picture_use(in_channels: int, out_channels: int) -> PictureUse | None:
    """What a transformer makes of a picture; None for an input that no published model has."""
    return next((use for use, times in INPUT_WIDTHS.items() if times * out_channels == in_channels), None)


@dataclass(frozen=True)
class T5Params:
    """Sizes of a T5 v1.1 encoder (gated GELU, RMS norm eps 1e-6, bias table in block 0 alone)."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int


@dataclass(frozen=True)
class ClipParams:
    """Sizes of a CLIP text encoder (quick GELU, causal). The end token's id is the tokenizer's to tell."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int


FLUX1 = FluxParams(
    in_channels=64,
    out_channels=64,
    vec_in_dim=768,
    context_in_dim=4096,
    hidden_size=3072,
    mlp_hidden=12288,
    num_heads=24,
    depth=19,
    depth_single_blocks=38,
    axes_dim=(16, 56, 56),
    theta=10_000,
    guidance_embed=False,
)
"""FLUX.1-schnell; dev differs in `guidance_embed` alone."""


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of the four networks of one model; they fit together."""

    transformer: FluxParams
    autoencoder: AutoencoderParams
    t5: T5Params
    clip: ClipParams


T5_XXL = T5Params(
    vocab_size=32128,
    d_model=4096,
    d_kv=64,
    d_ff=10240,
    num_layers=24,
    num_heads=64,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
)
CLIP_L = ClipParams(
    vocab_size=49408,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    max_position_embeddings=77,
)

FULL = ModelSizes(FLUX1, FLUX1_AE, T5_XXL, CLIP_L)
"""FLUX.1 as published."""

SLIM = ModelSizes(
    transformer=replace(FLUX1, depth=1, depth_single_blocks=2),
    autoencoder=FLUX1_AE,
    t5=replace(T5_XXL, num_layers=4),
    clip=CLIP_L,
)
"""Full width and a nineteenth of the depth: steps cost what they should, in a memory that everybody has (3.6 GB)."""

SMALL = ModelSizes(
    transformer=replace(
        FLUX1,
        vec_in_dim=256,
        context_in_dim=512,
        hidden_size=512,
        mlp_hidden=2048,
        num_heads=8,
        depth=3,
        depth_single_blocks=6,
        axes_dim=(8, 28, 28),
    ),
    autoencoder=replace(FLUX1_AE, ch=64),
    t5=replace(T5_XXL, d_model=512, d_ff=1024, num_layers=4, num_heads=8),
    clip=replace(CLIP_L, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4),
)
"""Some 120 million parameters: for benches on a CPU."""

TINY = ModelSizes(
    transformer=replace(
        FLUX1,
        vec_in_dim=24,
        context_in_dim=40,
        hidden_size=64,
        mlp_hidden=256,
        num_heads=4,
        depth=2,
        depth_single_blocks=3,
        axes_dim=(4, 6, 6),
    ),
    autoencoder=AutoencoderParams(
        in_channels=3, ch=16, ch_mult=(1, 2, 2, 2), num_res_blocks=1, z_channels=16, num_groups=8
    ),
    t5=replace(T5_XXL, d_model=40, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
    clip=replace(CLIP_L, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4),
)
"""Every size odd in its own way, to tell them apart: for tests."""

SIZES = {"tiny": TINY, "small": SMALL, "slim": SLIM, "full": FULL}
