"""What a LoRA adds to one Linear, by how its matrices make it up; run beside the Linear, or merged into its weight.

Follows Hu et al., arXiv:2106.09685 (LoRA), Hyeon-Woo et al., arXiv:2108.06098 (LoHa), and Yeh et al.,
arXiv:2309.14859 (LoKr).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Branch(ABC):
    """One change: scale * its matrix is added to the Linear's rows from `first_row` on, and scale * bias (height,)."""

    scale: float
    first_row: int
    bias: Tensor | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def height(self) -> int:
        """How many rows it changes."""

    @abstractmethod
    def answer(self, inputs: Tensor) -> Tensor:
        """(..., height): its matrix, not scaled, applied to the Linear's inputs (..., in)."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """(height, in) float32, not scaled."""

    @abstractmethod
    def halves_swapped(self) -> Branch:
        """The same with the two halves of its rows in the other order."""

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.first_row + self.height)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def to(self, device: torch.device, dtype: torch.dtype) -> Branch:
        return replace(self, **{name: tensor.to(device, dtype) for name, tensor in self.tensors.items()})  # type: ignore[arg-type]

    def scaled(self, scale: float) -> Branch:
        return replace(self, scale=scale)

    def add_to(self, weight: Tensor, strength: float) -> None:
        """Adds the change to a Linear's whole weight (out, in), float32, in place."""
        weight[self.rows].add_(self.matrix(), alpha=strength * self.scale)


@dataclass(frozen=True)
class LowRank(Branch):
    """up @ down. down: (rank, in), up: (height, rank)."""

    down: Tensor
    up: Tensor

    @property
    def height(self) -> int:
        return self.up.shape[0]

    def answer(self, inputs: Tensor) -> Tensor:
        return F.linear(F.linear(inputs, self.down), self.up)

    def matrix(self) -> Tensor:
        return self.up.float() @ self.down.float()

    def halves_swapped(self) -> Branch:
        return replace(self, up=swapped(self.up))


@dataclass(frozen=True)
class Hadamard(Branch):
    """LoHa: up_1 @ down_1 times up_2 @ down_2, number by number. down_*: (rank, in), up_*: (height, rank)."""

    up_1: Tensor
    down_1: Tensor
    up_2: Tensor
    down_2: Tensor

    @property
    def height(self) -> int:
        return self.up_1.shape[0]

    def answer(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, (self.up_1 @ self.down_1).mul_(self.up_2 @ self.down_2))

    def matrix(self) -> Tensor:
        return (self.up_1.float() @ self.down_1.float()).mul_(self.up_2.float() @ self.down_2.float())

    def halves_swapped(self) -> Branch:
        return replace(self, up_1=swapped(self.up_1), up_2=swapped(self.up_2))


@dataclass(frozen=True)
class Kronecker(Branch):
    """LoKr: left (a, b) times right (c, d) in Kronecker's way, (a * c, b * d)."""

    left: Tensor
    right: Tensor

    @property
    def height(self) -> int:
        return self.left.shape[0] * self.right.shape[0]

    def answer(self, inputs: Tensor) -> Tensor:
        """One factor after the other, first the one that leaves fewer numbers."""
        (a, b), (c, d) = self.left.shape, self.right.shape
        grid = inputs.unflatten(-1, (b, d))
        if a * d < b * c:
            return F.linear(self.left @ grid, self.right).flatten(-2)
        return (self.left @ F.linear(grid, self.right)).flatten(-2)

    def matrix(self) -> Tensor:
        return torch.kron(self.left.float(), self.right.float())

    def halves_swapped(self) -> Branch:
        if self.left.shape[0] % 2 == 0:
            return replace(self, left=swapped(self.left))
        whole = self.matrix()  # its rows are no longer a Kronecker product's
        return LowRank(self.scale, self.first_row, whole, swapped(torch.eye(self.height)))


def swapped(rows: Tensor) -> Tensor:
    return torch.cat(rows.chunk(2)[::-1])
