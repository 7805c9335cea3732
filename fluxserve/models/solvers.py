"""Solvers of the flow's equation: from a sample and its velocity to the sample at the next time. Know no network.

Time t runs 1 (noise) -> 0 (image), and velocity is noise minus picture. Follows black-forest-labs/flux
`src/flux/sampling.py` `denoise`, and for the second order DPM-Solver++ 2M (arXiv 2211.01095, section 4.2).
"""

from __future__ import annotations

import math

from torch import Tensor


def euler_step(x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """One step from t to t_next, each (B,). x, velocity: (B, I, F). Computed in float32, returned in x's dtype."""
    dt = (t_next - t).float()[:, None, None]
    return (x.float() + dt * velocity.float()).to(x.dtype)


def clean_estimate(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The picture as predicted at time t, (B,), in float32. x, velocity: (B, I, F)."""
    return x.float() - t.float()[:, None, None] * velocity.float()


def second_order_weight(before: float, t: float, t_next: float) -> float:
    """How much of the last change of the predicted picture is added to Euler's step from t, which came from `before`.

    Euler's step with it is DPM-Solver++ 2M, whose lambda is log((1 - t) / t). At 1 lambda is infinite and the formula
    would add nothing: there the steps are compared by their times, as Adams and Bashforth do. The last step, to 0, is
    Euler's.
    """
    if t_next == 0:
        return 0.0
    if before == 1:
        ratio = (t - t_next) / (before - t)
    else:
        ratio = (_lambda(t_next) - _lambda(t)) / (_lambda(t) - _lambda(before))
    return (1 - t_next / t) * ratio / 2


def _lambda(t: float) -> float:
    """Half the logarithm of the signal's power over the noise's."""
    return math.log((1 - t) / t)


def add_noise(clean: Tensor, noise: Tensor, t: float) -> Tensor:
    """The point of the straight path between picture (t = 0) and noise (t = 1)."""
    return (1.0 - t) * clean + t * noise
