"""The FLUX.1 autoencoder: the shared halves, with latents shifted and scaled to about unit variance.

Follows black-forest-labs/flux `src/flux/modules/autoencoder.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fluxserve.models.family import Part
from fluxserve.models.parts import autoencoder_names
from fluxserve.models.parts.autoencoder import AutoencoderParams, Decoder, Encoder, ResnetBlock

SCALE_FACTOR = 0.3611
SHIFT_FACTOR = 0.1159


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
