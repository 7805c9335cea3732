"""Solvers of the flow's equation: from a sample and its velocity to the sample at the next time. Know no network.

Time t runs 1 (noise) -> 0 (image), and velocity is noise minus picture. Follows black-forest-labs/flux
`src/flux/sampling.py` `denoise`.
"""

from __future__ import annotations

from torch import Tensor


def euler_step(x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """One step from t to t_next, each (B,). x, velocity: (B, I, F). Computed in float32, returned in x's dtype."""
    dt = (t_next - t).float()[:, None, None]
    return (x.float() + dt * velocity.float()).to(x.dtype)


def clean_estimate(x: Tensor, velocity: Tensor, t: float) -> Tensor:
    """The picture as predicted at time t."""
    return x - t * velocity


def add_noise(clean: Tensor, noise: Tensor, t: float) -> Tensor:
    """The point of the straight path between picture (t = 0) and noise (t = 1)."""
    return (1.0 - t) * clean + t * noise
