"""The sizes of a model, and what its files cannot tell (VARIANTS). Knows nothing of tensors or files.

Follows black-forest-labs/flux `src/flux/util.py` (configs) and the model cards on the Hub.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


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


@dataclass(frozen=True)
class AutoencoderParams:
    """Sizes of one autoencoder. num_groups: groups of every GroupNorm (32 in FLUX.1)."""

    in_channels: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    num_groups: int


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

FLUX1_AE = AutoencoderParams(
    in_channels=3, ch=128, ch_mult=(1, 2, 4, 4), num_res_blocks=2, z_channels=16, num_groups=32
)


@dataclass(frozen=True)
class Variant:
    """What a model's files cannot tell.

    shifted_schedule: dev's resolution-dependent time shift instead of schnell's linear times.
    steps: default step counts by quality word. guidance_scale: the default, None where the model takes none.
    native_area: pixels the model was made for; `resamples`: it draws at that area whatever size is asked.
    repository: the Hub id it is published under. notice: a warning that goes out with every answer.
    """

    name: str
    aliases: tuple[str, ...]
    shifted_schedule: bool
    max_sequence_length: int
    steps: dict[str, int]
    guidance_scale: float | None
    guidance_max: float
    native_area: int
    resamples: bool
    default_size: tuple[int, int]
    licence: str
    description: str
    repository: str | None = None
    notice: str | None = None


_DEV_LICENCE = "FLUX.1 [dev] Non-Commercial License"

VARIANTS = {
    "schnell": Variant(
        name="schnell",
        aliases=("flux-schnell", "flux.1-schnell"),
        shifted_schedule=False,
        max_sequence_length=256,
        steps={"low": 2, "medium": 4, "high": 4, "xhigh": 8, "max": 8},
        guidance_scale=None,
        guidance_max=100.0,
        native_area=1024 * 1024,
        resamples=False,
        default_size=(1024, 1024),
        licence="Apache-2.0",
        description="FLUX.1 [schnell]: text to image in 1 to 4 steps.",
        repository="black-forest-labs/FLUX.1-schnell",
    ),
    "dev": Variant(
        name="dev",
        aliases=("flux-dev", "flux.1-dev"),
        shifted_schedule=True,
        max_sequence_length=512,
        steps={"low": 20, "medium": 28, "high": 50, "xhigh": 50, "max": 50},
        guidance_scale=3.5,
        guidance_max=100.0,
        native_area=1024 * 1024,
        resamples=False,
        default_size=(1024, 1024),
        licence=_DEV_LICENCE,
        description="FLUX.1 [dev]: guidance-distilled text to image.",
        repository="black-forest-labs/FLUX.1-dev",
    ),
    "demo": Variant(
        name="demo",
        aliases=(),
        shifted_schedule=False,
        max_sequence_length=32,
        steps={"low": 4, "medium": 6, "high": 8, "xhigh": 12, "max": 16},
        guidance_scale=None,
        guidance_max=100.0,
        native_area=128 * 128,
        resamples=True,
        default_size=(256, 256),
        licence="Apache-2.0 (trained on MIT-licensed pictures, see NOTICE)",
        description="A small FLUX trained on pictures of some 1,850 emoji. It is not FLUX.1 and knows nothing else.",
    ),
}
VARIANTS["demo-untrained"] = replace(
    VARIANTS["demo"],
    name="demo-untrained",
    aliases=("demo",),
    description="Random weights of the demo's kind, made on the spot. Its pictures are noise.",
    notice="untrained-model-draws-noise",
)
