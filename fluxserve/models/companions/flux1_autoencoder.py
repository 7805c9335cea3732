"""The FLUX.1 autoencoder: the shared halves, with latents shifted and scaled to about unit variance.

Follows black-forest-labs/flux `src/flux/modules/autoencoder.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fluxserve.models.family import Part
from fluxserve.models.parts import autoencoder_names
from fluxserve.models.parts.autoencoder import AutoencoderParams, Decoder, Encoder, ResnetBlock
from fluxserve.models.parts.shapes import shapes_of
from fluxserve.models.synthetic import SyntheticNetwork, as_named
from fluxserve.tensors.reader import Shapes

SCALE_FACTOR = 0.3611
SHIFT_FACTOR = 0.1159

FLUX1_AE = AutoencoderParams(
    in_channels=3, ch=128, ch_mult=(1, 2, 4, 4), num_res_blocks=2, z_channels=16, num_groups=32
)
"""As published."""


class Autoencoder(nn.Module):
    def __init__(self, params: AutoencoderParams) -> None:
        super().__init__()
        self.params = params
        self.encoder = Encoder(params)
        self.decoder = Decoder(params)

    @property
    def stages(self) -> Iterator[nn.Module]:
        """Where encoding and decoding may be stopped: before each residual block."""
        return (module for module in self.modules() if isinstance(module, ResnetBlock))

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels: (B, 3, height, width) in [-1, 1]. Returns (B, C, h, w) latents: the mean, shifted and scaled."""
        mean, _ = torch.chunk(self.encoder(pixels), 2, dim=1)
        return SCALE_FACTOR * (mean - SHIFT_FACTOR)

    def decode(self, latents: Tensor) -> Tensor:
        """latents: (B, C, h, w). Returns (B, 3, height, width), about [-1, 1] but not clamped."""
        return self.decoder(latents / SCALE_FACTOR + SHIFT_FACTOR)


AUTOENCODER = Part(
    name="autoencoder",
    title="FLUX.1 autoencoder",
    role="autoencoder",
    folder="vae",
    markers=(autoencoder_names.BFL_MARKER, autoencoder_names.DIFFUSERS_MARKER),
    canonical=autoencoder_names.canonical_autoencoder,
    bundle_prefix="vae.",
    bundle_aliases=("first_stage_model.",),
)


def autoencoder_shapes(params: AutoencoderParams) -> Shapes:
    """Every tensor, in BFL's names."""
    return shapes_of(lambda: Autoencoder(params))


def stored_autoencoder(params: AutoencoderParams) -> SyntheticNetwork:
    """One of random weights, in no file yet."""
    shapes = autoencoder_shapes(params)
    return SyntheticNetwork("autoencoder", "", "", shapes, as_named(shapes), autoencoder_config(params), params.ch)


def autoencoder_config(params: AutoencoderParams) -> dict[str, Any]:
    """In diffusers' words."""
    levels = len(params.ch_mult)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [params.ch * mult for mult in params.ch_mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": True,
        "in_channels": params.in_channels,
        "latent_channels": params.z_channels,
        "layers_per_block": params.num_res_blocks,
        "mid_block_add_attention": True,
        "norm_num_groups": params.num_groups,
        "out_channels": params.in_channels,
        "sample_size": 1024,
        "scaling_factor": SCALE_FACTOR,
        "shift_factor": SHIFT_FACTOR,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }
