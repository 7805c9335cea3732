"""Latents whose image tokens are squares of them, packed: what a seed draws, and between grid and tokens.

Follows black-forest-labs/flux `src/flux/sampling.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedLatents:
    """channels: C. scale: pixels a side of a latent. patch: latents a side of an image token; F = C x patch x patch.

    channels_last: a token's values go through the channels of one latent before those of the next.
    """

    channels: int
    scale: int = 8
    patch: int = 2
    channels_last: bool = False

    @property
    def token_area(self) -> int:
        """Pixels."""
        return (self.scale * self.patch) ** 2

    def noise(self, seed: int, size: tuple[int, int]) -> Tensor:
        """Drawn as (C, h, w) float32 on the CPU, the same on every machine and in every batch; packed to (I, F)."""
        generator = torch.Generator().manual_seed(seed)
        return self.pack(torch.randn(self.channels, *size, generator=generator))

    def pack(self, latents: Tensor) -> Tensor:
        """(..., C, h, w) to (..., I, F)."""
        grid = latents.unflatten(-1, (-1, self.patch)).unflatten(-3, (-1, self.patch))  # (..., C, rows, 2, columns, 2)
        order = (-4, -2, -3, -1, -5) if self.channels_last else (-4, -2, -5, -3, -1)
        return grid.permute(*range(grid.ndim - 5), *order).flatten(-3).flatten(-3, -2)

    def unpack(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """(..., I, F) to (..., C, h, w)."""
        rows, columns = (side // self.patch for side in size)
        shape = (self.patch, self.patch, -1) if self.channels_last else (-1, self.patch, self.patch)
        grid = tokens.unflatten(-2, (rows, columns)).unflatten(-1, shape)  # (..., rows, columns, and a token's three)
        order = (-1, -5, -3, -4, -2) if self.channels_last else (-3, -5, -2, -4, -1)
        return grid.permute(*range(grid.ndim - 5), *order).flatten(-2).flatten(-3, -2)
