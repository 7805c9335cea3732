"""Rectified-flow sampling: noise, schedules, packing, the Euler step. Time t runs 1 (noise) -> 0 (image).

Follows black-forest-labs/flux `src/flux/sampling.py`; the time shift is that of arXiv 2403.03206, section 5.3.2.
Knows nothing of prompts, models or devices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PATCH = 2
"""Latent pixels a side that one image token packs."""

BASE_TOKENS, BASE_MU = 256, 0.5
FULL_TOKENS, FULL_MU = 4096, 1.15


def schedule(steps: int, image_tokens: int, shifted: bool) -> list[float]:
    """The steps + 1 times from 1 to 0.

    Linear for schnell; for dev moved towards noise, the more the larger the picture.
    """
    times = [1.0 - i / steps for i in range(steps)]
    if shifted:
        mu = BASE_MU + (image_tokens - BASE_TOKENS) * (FULL_MU - BASE_MU) / (FULL_TOKENS - BASE_TOKENS)
        times = [math.exp(mu) / (math.exp(mu) + 1.0 / t - 1.0) for t in times]
    return [*times, 0.0]


def noise(seed: int, channels: int, height: int, width: int) -> Tensor:
    """Standard normal (channels, height, width) float32 on the CPU: the same on every machine and in every batch."""
    return torch.randn(channels, height, width, generator=torch.Generator().manual_seed(seed))


def pack(latents: Tensor) -> Tensor:
    """(..., C, h, w) latents to (..., h / 2 * w / 2, C * 4) tokens, channel slowest."""
    grid = latents.unflatten(-1, (-1, PATCH)).unflatten(-3, (-1, PATCH))  # (..., C, rows, 2, columns, 2)
    lead = list(range(grid.ndim - 5))
    c, row, dy, column, dx = range(grid.ndim - 5, grid.ndim)
    return grid.permute(*lead, row, column, c, dy, dx).flatten(-3).flatten(-3, -2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """(..., I, C * 4) tokens to (..., C, height, width) latents; height and width in latent pixels."""
    grid = tokens.unflatten(-2, (height // PATCH, width // PATCH)).unflatten(-1, (-1, PATCH, PATCH))
    lead = list(range(grid.ndim - 5))
    row, column, c, dy, dx = range(grid.ndim - 5, grid.ndim)
    return grid.permute(*lead, c, row, dy, column, dx).flatten(-2).flatten(-3, -2)


def euler_step(x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """One step from t to t_next, each (B,). x, velocity: (B, I, C * 4). Computed in float32, returned in x's dtype."""
    dt = (t_next - t).float()[:, None, None]
    return (x.float() + dt * velocity.float()).to(x.dtype)


def predict_image(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The picture as predicted at time t: x0 = x - t v. Shapes as in `euler_step`."""
    return x.float() - t.float()[:, None, None] * velocity.float()


def add_noise(clean: Tensor, noise_: Tensor, t: float) -> Tensor:
    """The point of the straight path between picture (t = 0) and noise (t = 1)."""
    return (1.0 - t) * clean + t * noise_
