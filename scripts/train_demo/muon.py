"""Muon for the hidden matrices, AdamW for the rest, in one optimizer.

Follows Keller Jordan's Muon (github.com/KellerJordan/Muon): momentum, then the nearest semi-orthogonal matrix by a
quintic Newton-Schulz iteration. Convolutions count as matrices of out x (in * k * k). Many tensors take each operation
at once: on a GPU the starts of single ones would take longer than the work. Knows nothing of models or data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scripts.train_demo.precision import working_dtype

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """(..., n, m) to about U V^T of their singular value decompositions, computed in the working dtype."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(working_dtype(matrices.device))
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def orthogonalised(directions: Sequence[Tensor]) -> list[Tensor]:
    """Each as its matrix, stretched where it is taller than wide; those of one shape together."""
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, direction in enumerate(directions):
        alike[direction.shape].append(i)
    updates = list(directions)
    for chosen in alike.values():
        matrices = torch.stack([directions[i].flatten(1) for i in chosen])
        stretch = max(1.0, matrices.shape[-2] / matrices.shape[-1]) ** 0.5
        for i, update in zip(chosen, orthogonalise(matrices) * stretch, strict=True):
            updates[i] = update.view_as(directions[i])
    return updates


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
            moving = [p for p in group["params"] if p.grad is not None]
            if not moving:
                continue
            update = self._matrix_updates if group["muon"] else self._adam_updates
            lr = group["lr"] * group["scale"]
            values = [p.data for p in moving]  # not seen by autograd: other threads may be computing with them
            torch._foreach_mul_(values, 1 - lr * group["decay"])
            torch._foreach_add_(values, update(moving, group), alpha=-lr)

    def _kept(self, moving: Sequence[nn.Parameter], name: str) -> list[Tensor]:
        """A tensor of the state for each; zeros at first."""
        for parameter in moving:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in moving]

    def _matrix_updates(self, moving: Sequence[nn.Parameter], group: dict[str, Any]) -> Sequence[Tensor]:
        gradients, buffers, momentum = [p.grad for p in moving], self._kept(moving, "momentum"), group["momentum"]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return orthogonalised(torch._foreach_lerp(gradients, buffers, momentum))  # Nesterov

    def _adam_updates(self, moving: Sequence[nn.Parameter], group: dict[str, Any]) -> Sequence[Tensor]:
        gradients, (beta1, beta2) = [p.grad for p in moving], group["betas"]
        means, squares = self._kept(moving, "mean"), self._kept(moving, "square")
        for parameter in moving:
            self.state[parameter]["steps"] = self.state[parameter].get("steps", 0) + 1
        steps = [self.state[parameter]["steps"] for parameter in moving]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - beta2)
        scales = torch._foreach_sqrt(torch._foreach_div(squares, [1 - beta2**n for n in steps]))
        torch._foreach_add_(scales, 1e-8)
        return torch._foreach_div(torch._foreach_div(means, [1 - beta1**n for n in steps]), scales)
