"""The one interface through which weights are read, whatever file they lie in.

Canonical names are those of the modules that a family builds (`Part.canonical`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from fluxserve.errors import CheckpointError
from fluxserve.tensors.packed import PackedWeight

NAMED_DIFFERENCES = 5

Shapes = Mapping[str, tuple[int, ...]]
"""Tensors of a network by name."""


class TensorReader(Protocol):
    """Lazily reads the tensors of one component. Opening reads names and shapes alone.

    source: the file or folder, for messages. files: all that it reads from.
    """

    @property
    def source(self) -> str: ...
    @property
    def files(self) -> tuple[Path, ...]: ...

    def keys(self) -> Collection[str]: ...

    def shape(self, key: str) -> tuple[int, ...]: ...

    def dtype(self, key: str) -> torch.dtype:
        """What `read` gives: the dtype in the file, float32 for quantised tensors."""
        ...

    def read(self, key: str) -> Tensor:
        """The tensor on the CPU: a view of the mapped file where it is stored as it is; quantised ones unpacked."""
        ...

    def packed(self, key: str) -> PackedWeight | None:
        """The quantised form of a Linear's matrix that is stored so, else None."""
        ...

    def packed_meta(self, key: str) -> PackedWeight | None:
        """What `packed` gives, on the meta device: tells the sizes without reading or joining anything."""
        ...

    def release(self, key: str) -> None:
        """Drops the file's pages behind `key` from this process's memory; touching them again reads them again."""
        ...


Operation = Literal["rows", "swap_halves", "conv1x1", "flat", "table"]


@dataclass(frozen=True)
class Recipe:
    """How one canonical tensor is made of stored ones.

    `rows`: stacked on dim 0. `swap_halves`: of dim 0, exchanged. `conv1x1`: a matrix seen as a 1 x 1 convolution.
    `flat`: a matrix of one row seen as a vector. `table`: looked up by row and not multiplied with, so never packed.
    """

    parts: tuple[str, ...]
    op: Operation = "rows"


class Mapped:
    """A reader under other names, by recipes whose parts it has; they are read and joined when asked for.

    Raises:
        CheckpointError: parts do not fit together.
    """

    def __init__(self, reader: TensorReader, recipes: Mapping[str, Recipe]) -> None:
        self.source, self.files = reader.source, reader.files
        self._reader = reader
        self._recipes = recipes
        for key in recipes:
            self._require_fit(key)

    def keys(self) -> Collection[str]:
        return self._recipes.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        recipe = self._recipes[key]
        shapes = [self._reader.shape(part) for part in recipe.parts]
        rows = (sum(shape[0] for shape in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]
        if recipe.op == "flat":
            return rows[1:] if len(rows) == 2 and rows[0] == 1 else rows
        return (*rows, 1, 1) if recipe.op == "conv1x1" else rows

    def dtype(self, key: str) -> torch.dtype:
        return reduce(torch.promote_types, [self._reader.dtype(part) for part in self._recipes[key].parts])

    def read(self, key: str) -> Tensor:
        recipe = self._recipes[key]
        parts = [self._reader.read(part) for part in recipe.parts]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        if recipe.op == "swap_halves":
            return torch.cat(tensor.chunk(2)[::-1])
        if recipe.op == "flat":
            return tensor.view(self.shape(key))
        return tensor[..., None, None] if recipe.op == "conv1x1" else tensor

    def packed(self, key: str) -> PackedWeight | None:
        return self._joined(key, self._reader.packed)

    def packed_meta(self, key: str) -> PackedWeight | None:
        return self._joined(key, self._reader.packed_meta)

    def _joined(self, key: str, of_part: Callable[[str], PackedWeight | None]) -> PackedWeight | None:
        recipe = self._recipes[key]
        weights = [weight for part in recipe.parts if (weight := of_part(part))]
        alike = len(weights) == len(recipe.parts) and len({weight.scheme for weight in weights}) == 1
        if not alike or recipe.op in ("conv1x1", "flat", "table"):
            return None
        if recipe.op == "swap_halves":
            weights = [weights[0].rows(half) for half in reversed(halves(weights[0].shape[0]))]
        return PackedWeight.stack(weights)

    def release(self, key: str) -> None:
        for part in self._recipes[key].parts:
            self._reader.release(part)

    def _require_fit(self, key: str) -> None:
        recipe = self._recipes[key]
        shapes = [self._reader.shape(part) for part in recipe.parts]
        if len(shapes) > 1 and (not shapes[0] or any(shape[1:] != shapes[0][1:] for shape in shapes)):
            raise CheckpointError(f"{self.source}: {', '.join(recipe.parts)} of shapes {shapes} cannot be stacked")


def halves(rows: int) -> tuple[slice, slice]:
    return slice(0, rows // 2), slice(rows // 2, rows)


def renamed(reader: TensorReader, names: Mapping[str, str]) -> Mapped:
    """`reader` with each stored name under its new one. names: new -> stored."""
    return Mapped(reader, {new: Recipe((stored,)) for new, stored in names.items()})


def with_tables(reader: TensorReader, names: Mapping[str, str], tables: tuple[str, ...]) -> Mapped:
    """`reader` under new names (new -> stored); those that end so are looked up by row, and never left packed."""
    return Mapped(
        reader, {new: Recipe((stored,), "table" if new.endswith(tables) else "rows") for new, stored in names.items()}
    )


def mapped_exactly(reader: TensorReader, recipes: Mapping[str, Recipe]) -> Mapped:
    """`reader` by recipes that need every one of its tensors and no other.

    Raises:
        CheckpointError: names the file and the first five differences, in the file's own names.
    """
    stored, needed = set(reader.keys()), [part for recipe in recipes.values() for part in recipe.parts]
    differences = [f"missing {part}" for part in needed if part not in stored]
    differences += [f"unexpected {key}" for key in sorted(stored.difference(needed))]
    if differences:
        raise CheckpointError(f"{reader.source}: {name_some(differences)}")
    return Mapped(reader, recipes)


def require_exact(reader: TensorReader, expected: Shapes, what: str) -> None:
    """Every expected tensor is there in its shape, of floating point numbers, and no other.

    Raises:
        CheckpointError: names the file and the first five differences.
    """
    stored = set(reader.keys())
    differences = [f"missing {key}" for key in expected if key not in stored]
    differences += [f"unexpected {key}" for key in sorted(stored - expected.keys())]
    differences += [
        f"{key} is {reader.shape(key)}, expected {shape}"
        for key, shape in expected.items()
        if key in stored and reader.shape(key) != shape
    ]
    differences += [
        f"{key} holds {reader.dtype(key)}, expected floating point numbers"
        for key in expected
        if key in stored and not reader.dtype(key).is_floating_point
    ]
    if differences:
        raise CheckpointError(f"{reader.source}: differs from {what}: {name_some(differences)}")


def name_some(differences: Iterable[str]) -> str:
    """The first five, and how many more there are."""
    found = list(differences)
    more = len(found) - NAMED_DIFFERENCES
    return "; ".join(found[:NAMED_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
