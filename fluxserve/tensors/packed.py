"""Quantised matrices: bytes as stored, and the arithmetic that makes numbers of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

CPU_PIECE = 2**18
"""Values unpacked at a time on a CPU: what lies between packed and unpacked stays in its cache; thrice as fast."""


class Scheme(Protocol):
    """A way of packing a matrix row by row. Equal schemes unpack alike; they are hashable.

    name: as users know it, e.g. `Q4_K`, `float8_e4m3fn`, `nf4`.
    """

    @property
    def name(self) -> str: ...

    def unpack(self, parts: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """The matrix in `dtype`, on the device of its parts; computed in float32 and rounded once."""
        ...


@dataclass(frozen=True)
class PackedWeight:
    """One (out, in) matrix in packed form. parts: what must travel with it (bytes, scales), each (out, ...)."""

    scheme: Scheme
    shape: tuple[int, int]
    parts: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    @property
    def device(self) -> torch.device:
        return next(iter(self.parts.values())).device

    def unpack(self, dtype: torch.dtype, into: Tensor | None = None) -> Tensor:
        """The matrix itself, (out, in) in dtype. into: where to put it, if that is more than a few rows on a CPU."""
        rows, columns = self.shape
        step = max(CPU_PIECE // columns, 1)
        if self.device.type != "cpu" or rows <= step:
            return self.scheme.unpack(self.parts, self.shape, dtype)
        matrix = torch.empty(self.shape, dtype=dtype) if into is None else into
        for begin in range(0, rows, step):
            piece = self.rows(slice(begin, begin + step))
            matrix[begin : begin + step] = self.scheme.unpack(piece.parts, piece.shape, dtype)
        return matrix

    def to(self, device: torch.device) -> PackedWeight:
        """The same, with its parts on a device."""
        return PackedWeight(self.scheme, self.shape, {name: part.to(device) for name, part in self.parts.items()})

    def rows(self, some: slice) -> PackedWeight:
        """Some of the rows, still packed."""
        parts = {name: part[some] for name, part in self.parts.items()}
        return PackedWeight(self.scheme, (len(range(*some.indices(self.shape[0]))), self.shape[1]), parts)

    @staticmethod
    def stack(weights: Sequence[PackedWeight]) -> PackedWeight:
        """Weights of one scheme and width, one above the other."""
        if len(weights) == 1:
            return weights[0]
        parts = {name: torch.cat([weight.parts[name] for weight in weights]) for name in weights[0].parts}
        return PackedWeight(weights[0].scheme, (sum(w.shape[0] for w in weights), weights[0].shape[1]), parts)
