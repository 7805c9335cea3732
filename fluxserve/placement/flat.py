"""One block's weights back to back in one byte buffer, so that they move in one copy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fluxserve.tensors.packed import PackedWeight, Scheme

ALIGNMENT = 64
"""Bytes: a cache line, and what vectorised kernels like best."""

Weight = Tensor | PackedWeight


@dataclass(frozen=True)
class Piece:
    """One tensor in the buffer: bytes begin .. begin + its size. channels_last: the order in which a 4-D one lies."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    channels_last: bool = False

    @property
    def end(self) -> int:
        return self.begin + math.prod(self.shape) * self.dtype.itemsize

    def view(self, buffer: Tensor) -> Tensor:
        """buffer: (n,) uint8. Returns the tensor in place."""
        values = buffer[self.begin : self.end].view(self.dtype)
        if not self.channels_last:
            return values.view(self.shape)
        outputs, inputs, height, width = self.shape
        return values.view(outputs, height, width, inputs).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class PackedPieces:
    """A quantised matrix in the buffer."""

    scheme: Scheme
    shape: tuple[int, int]
    parts: Mapping[str, Piece]

    def view(self, buffer: Tensor) -> PackedWeight:
        parts = {name: piece.view(buffer) for name, piece in self.parts.items()}
        return PackedWeight(self.scheme, self.shape, parts)


@dataclass(frozen=True)
class FlatLayout:
    """Where each weight of a block lies. nbytes: of the whole buffer, a multiple of the alignment."""

    pieces: Mapping[str, Piece | PackedPieces]
    nbytes: int

    @classmethod
    def of(cls, weights: Iterable[tuple[str, Weight]]) -> FlatLayout:
        """The layout for weights of these kinds; meta tensors do."""
        pieces: dict[str, Piece | PackedPieces] = {}
        end = 0
        for name, weight in weights:
            parts = {}
            for part_name, part in _parts(weight):
                parts[part_name] = Piece(part.dtype, tuple(part.shape), aligned(end), _channels_last(part))
                end = parts[part_name].end
            if isinstance(weight, PackedWeight):
                pieces[name] = PackedPieces(weight.scheme, weight.shape, parts)
            else:
                pieces[name] = parts[""]
        return cls(pieces, aligned(end))

    def views(self, buffer: Tensor) -> dict[str, Weight]:
        """The weights in place in a buffer of `nbytes` uint8 or more."""
        return {name: piece.view(buffer) for name, piece in self.pieces.items()}

    def write(self, buffer: Tensor, weights: Iterable[tuple[str, Weight]]) -> None:
        """Copies weights of this layout into a buffer, converting dtypes."""
        views = self.views(buffer)
        for name, weight in weights:
            for (_, place), (_, part) in zip(_parts(views[name]), _parts(weight), strict=True):
                place.copy_(part)


def aligned(offset: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _channels_last(part: Tensor) -> bool:
    return part.ndim == 4 and not part.is_contiguous() and part.is_contiguous(memory_format=torch.channels_last)


def _parts(weight: Weight) -> Iterator[tuple[str, Tensor]]:
    if isinstance(weight, PackedWeight):
        yield from sorted(weight.parts.items())
    else:
        yield "", weight
