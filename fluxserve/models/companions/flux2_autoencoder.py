"""The FLUX.2 autoencoder: the shared halves with a 1x1 convolution each, and latents of 2 x 2 squares, normalised.

Follows huggingface/diffusers `models/autoencoders/autoencoder_kl_flux2.py`; names are those of BFL's ae.safetensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxserve.models.family import Part
from fluxserve.models.parts.autoencoder import AutoencoderParams, Decoder, Encoder, ResnetBlock
from fluxserve.models.parts.autoencoder_names import autoencoder_recipes
from fluxserve.models.parts.shapes import shapes_of
from fluxserve.models.sizes import count
from fluxserve.models.synthetic import SyntheticNetwork, as_named
from fluxserve.tensors.reader import Recipe, Shapes, TensorReader, mapped_exactly, renamed

BATCH_NORM_EPS = 1e-4
PATCH = 2
MARKER = "bn.running_mean"
_COUNTER = "bn.num_batches_tracked"
_DIFFUSERS_NAME = "decoder.up_blocks.0.resnets.0.conv1.weight"

FLUX2_AE = AutoencoderParams(
    in_channels=3, ch=128, ch_mult=(1, 2, 4, 4), num_res_blocks=2, z_channels=32, num_groups=32
)
"""As published."""


class QuantisedEncoder(Encoder):
    """quant_conv: over mean and log-variance."""

    def __init__(self, params: AutoencoderParams) -> None:
        super().__init__(params)
        self.quant_conv = nn.Conv2d(2 * params.z_channels, 2 * params.z_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.quant_conv(super().forward(x))


class QuantisedDecoder(Decoder):
    """post_quant_conv: before the first layer."""

    def __init__(self, params: AutoencoderParams) -> None:
        super().__init__(params)
        self.post_quant_conv = nn.Conv2d(params.z_channels, params.z_channels, kernel_size=1)

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(self.post_quant_conv(z))


class Statistics(nn.Module):
    """Mean and variance of each channel of a packed latent, as training found them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.running_mean = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.running_var = nn.Parameter(torch.ones(channels), requires_grad=False)

    def moments(self) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation), each (1, channels, 1, 1)."""
        mean, deviation = self.running_mean, torch.sqrt(self.running_var + BATCH_NORM_EPS)
        return mean[None, :, None, None], deviation[None, :, None, None]


class Flux2Autoencoder(nn.Module):
    """Latents are (B, 4 * z_channels, height / 16, width / 16)."""

    def __init__(self, params: AutoencoderParams) -> None:
        super().__init__()
        self.params = params
        self.encoder = QuantisedEncoder(params)
        self.decoder = QuantisedDecoder(params)
        self.bn = Statistics(PATCH * PATCH * params.z_channels)

    @property
    def stages(self) -> Iterator[nn.Module]:
        """Where encoding and decoding may be stopped: before each residual block."""
        return (module for module in self.modules() if isinstance(module, ResnetBlock))

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels: (B, 3, height, width) in [-1, 1]. Returns normalised latents of the mean."""
        mean, _ = torch.chunk(self.encoder(pixels), 2, dim=1)
        centre, deviation = self.bn.moments()
        return (F.pixel_unshuffle(mean, PATCH) - centre) / deviation

    def decode(self, latents: Tensor) -> Tensor:
        """latents: as `encode` gives. Returns (B, 3, height, width), about [-1, 1] but not clamped."""
        centre, deviation = self.bn.moments()
        return self.decoder(F.pixel_shuffle(latents * deviation + centre, PATCH))


def flux2_autoencoder_recipes(levels: int, blocks: int) -> dict[str, Recipe]:
    """BFL name -> recipe of every tensor an autoencoder may have, from diffusers' names."""
    recipes = autoencoder_recipes(levels, blocks)
    for ours, theirs in (("encoder.quant_conv", "quant_conv"), ("decoder.post_quant_conv", "post_quant_conv")):
        recipes |= {f"{ours}.{kind}": Recipe((f"{theirs}.{kind}",)) for kind in ("weight", "bias")}
    return recipes | {f"bn.{name}": Recipe((f"bn.{name}",)) for name in ("running_mean", "running_var")}


def canonical_autoencoder(reader: TensorReader) -> TensorReader:
    """Under BFL's names, from either spelling; the counter of training batches is not read."""
    keys = [key for key in reader.keys() if key != _COUNTER]
    known = renamed(reader, {key: key for key in keys})
    if _DIFFUSERS_NAME not in keys:
        return known
    levels, blocks = count(keys, "encoder.down_blocks."), count(keys, "encoder.down_blocks.0.resnets.")
    possible = flux2_autoencoder_recipes(levels, blocks)
    return mapped_exactly(known, {key: recipe for key, recipe in possible.items() if recipe.parts[0] in keys})


AUTOENCODER = Part(
    name="autoencoder",
    title="FLUX.2 autoencoder",
    role="autoencoder",
    folder="vae",
    markers=(MARKER,),
    canonical=canonical_autoencoder,
    bundle_prefix="vae.",
)


def autoencoder_shapes(params: AutoencoderParams) -> Shapes:
    """Every tensor, in BFL's names."""
    return shapes_of(lambda: Flux2Autoencoder(params))


def stored_autoencoder(params: AutoencoderParams) -> SyntheticNetwork:
    """One of random weights, in no file yet."""
    shapes = autoencoder_shapes(params)
    return SyntheticNetwork("autoencoder", "", "", shapes, as_named(shapes), autoencoder_config(params), params.ch)


def autoencoder_config(params: AutoencoderParams) -> dict[str, Any]:
    """In diffusers' words."""
    levels = len(params.ch_mult)
    return {
        "_class_name": "AutoencoderKLFlux2",
        "act_fn": "silu",
        "batch_norm_eps": BATCH_NORM_EPS,
        "block_out_channels": [params.ch * mult for mult in params.ch_mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": params.in_channels,
        "latent_channels": params.z_channels,
        "layers_per_block": params.num_res_blocks,
        "norm_num_groups": params.num_groups,
        "out_channels": params.in_channels,
        "patch_size": [2, 2],
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    }
