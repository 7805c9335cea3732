"""Muon for the hidden matrices, AdamW for the rest, in one optimizer.

Follows Keller Jordan's Muon (github.com/KellerJordan/Muon): momentum, then the nearest semi-orthogonal matrix by a
quintic Newton-Schulz iteration. Convolutions count as matrices of out x (in * k * k). Knows nothing of models or data.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """(n, m) to about U V^T of its singular value decomposition, computed in bfloat16."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """lr applies to the matrices; the others take AdamW steps at `adam_lr`. `scale` multiplies both (the schedule)."""

    def __init__(
        self, matrices: Iterable[nn.Parameter], others: Iterable[nn.Parameter], lr: float, adam_lr: float, decay: float
    ) -> None:
        groups = [
            {"params": list(matrices), "lr": lr, "muon": True},
            {"params": list(others), "lr": adam_lr, "muon": False},
        ]
        super().__init__(groups, {"momentum": 0.95, "betas": (0.9, 0.98), "decay": decay, "scale": 1.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            update = self._matrix_update if group["muon"] else self._adam_update
            for parameter in group["params"]:
                if parameter.grad is not None:
                    lr = group["lr"] * group["scale"]
                    values = parameter.data  # not seen by autograd: other threads may be computing with it
                    values.mul_(1 - lr * group["decay"])
                    values.add_(update(parameter, group), alpha=-lr)

    def _matrix_update(self, parameter: nn.Parameter, group: dict[str, object]) -> Tensor:
        state, gradient, momentum = self.state[parameter], parameter.grad, float(group["momentum"])  # type: ignore[arg-type]
        assert gradient is not None
        buffer = state.setdefault("momentum", torch.zeros_like(parameter))
        buffer.lerp_(gradient, 1 - momentum)
        direction = gradient.lerp(buffer, momentum).flatten(1)  # Nesterov
        stretch = max(1.0, direction.shape[0] / direction.shape[1]) ** 0.5
        return orthogonalise(direction).view_as(parameter) * stretch

    def _adam_update(self, parameter: nn.Parameter, group: dict[str, object]) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        beta1, beta2 = group["betas"]  # type: ignore[misc]
        mean = state.setdefault("mean", torch.zeros_like(parameter)).lerp_(gradient, 1 - beta1)
        square = state.setdefault("square", torch.zeros_like(parameter)).lerp_(gradient.square(), 1 - beta2)
        state["steps"] = state.get("steps", 0) + 1
        corrected = square / (1 - beta2 ** state["steps"])
        return mean / (1 - beta1 ** state["steps"]) / (corrected.sqrt() + 1e-8)
