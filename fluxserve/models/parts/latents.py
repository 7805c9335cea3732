"""Latents whose image tokens are squares of them, packed: what a seed draws, and between grid and tokens.

Follows black-forest-labs/flux `src/flux/sampling.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedLatents:
    """channels: C. scale: pixels a side of a latent. patch: latents a side of an image token; F = C x patch x patch."""

    channels: int
    scale: int = 8
    patch: int = 2

    @property
    def token_area(self) -> int:
        """Pixels."""
        return (self.scale * self.patch) ** 2

    def noise(self, seed: int, size: tuple[int, int]) -> Tensor:
        """Drawn as (C, h, w) float32 on the CPU, the same on every machine and in every batch; packed to (I, F)."""
        generator = torch.Generator().manual_seed(seed)
        return self.pack(torch.randn(self.channels, *size, generator=generator))

    def pack(self, latents: Tensor) -> Tensor:
        """(..., C, h, w) to (..., I, F), channel slowest."""
        grid = latents.unflatten(-1, (-1, self.patch)).unflatten(-3, (-1, self.patch))  # (..., C, rows, 2, columns, 2)
        lead = list(range(grid.ndim - 5))
        c, row, dy, column, dx = range(grid.ndim - 5, grid.ndim)
        return grid.permute(*lead, row, column, c, dy, dx).flatten(-3).flatten(-3, -2)

    def unpack(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """(..., I, F) to (..., C, h, w)."""
        rows, columns = (side // self.patch for side in size)
        grid = tokens.unflatten(-2, (rows, columns)).unflatten(-1, (-1, self.patch, self.patch))
        lead = list(range(grid.ndim - 5))
        row, column, c, dy, dx = range(grid.ndim - 5, grid.ndim)
        return grid.permute(*lead, c, row, dy, column, dx).flatten(-2).flatten(-3, -2)
