"""Norms: of heads before attention, and of streams, modulated as adaLN does (DiT, arXiv 2212.09748)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


class HeadScale(nn.Module):
    """Of a root-mean-square norm of heads."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))


class QKNorm(nn.Module):
    """Holds what `split_heads` norms q and k with."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_norm = HeadScale(dim)
        self.key_norm = HeadScale(dim)

    @property
    def scales(self) -> tuple[Tensor, Tensor]:
        return self.query_norm.scale, self.key_norm.scale


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without own weights, then x * (1 + scale) + shift. x: (B, L, hidden); shift, scale: (B, 1, hidden).

    In one pass: what modulates a sample are the weights of its norm.
    """
    weights = zip((1 + scale).flatten(0, 1), shift.flatten(0, 1), strict=True)
    normed = [F.layer_norm(own, own.shape[-1:], *rows, NORM_EPS) for own, rows in zip(x, weights, strict=True)]
    return normed[0][None] if len(normed) == 1 else torch.stack(normed)


def clamp_half(x: Tensor) -> Tensor:
    """float16 alone overflows in these streams: keep it finite there, touch nothing elsewhere."""
    return x.clamp(-65504, 65504) if x.dtype == torch.float16 else x
