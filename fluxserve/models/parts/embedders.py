"""Embedders of numbers and vectors. Follows black-forest-labs/flux `src/flux/modules/layers.py`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoidal_embedding(t: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """t: (B,) float32 time or guidance. Returns (B, dim) in dtype: cosines first, then sines, of 1000 t.

    1000 t is rounded to dtype once, as the published models were trained: 16-bit rounding of t itself would move it.
    """
    half = dim // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = (1000.0 * t).to(dtype).float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1).to(dtype)


class MLPEmbedder(nn.Module):
    def __init__(self, in_dim: int, hidden_dim: int, bias: bool = True) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_dim, hidden_dim, bias=bias)
        self.out_layer = nn.Linear(hidden_dim, hidden_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in_dim). Returns (B, hidden_dim)."""
        return self.out_layer(F.silu(self.in_layer(x)))
