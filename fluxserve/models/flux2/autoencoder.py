"""The FLUX.2 autoencoder: the shared halves with a 1x1 convolution each, and latents of 2 x 2 squares, normalised.

Follows huggingface/diffusers `models/autoencoders/autoencoder_kl_flux2.py`; names are those of BFL's ae.safetensors.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxserve.models.parts.autoencoder import AutoencoderParams, Decoder, Encoder, ResnetBlock

BATCH_NORM_EPS = 1e-4
PATCH = 2


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
