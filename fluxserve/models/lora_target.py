"""What a module of a LoRA file changes in a network, and which Linears a network has."""

from __future__ import annotations

from dataclasses import dataclass

from fluxserve.tensors.reader import Shapes


@dataclass(frozen=True)
class LoraTarget:
    """`rows` rows of a Linear, from `first_row` on. network: the part's name. columns: the Linear's inputs.

    swap_halves: the two halves of the file's rows stand in the other order in the Linear.
    """

    network: str
    linear: str
    first_row: int
    rows: int
    columns: int
    swap_halves: bool = False


def linears(shapes: Shapes, tables: tuple[str, ...] = ()) -> dict[str, tuple[int, int]]:
    """(rows, columns) of each Linear. tables: endings of matrices that are none."""
    return {
        key.removesuffix(".weight"): (shape[0], shape[1])
        for key, shape in shapes.items()
        if len(shape) == 2 and not key.endswith(tables)
    }
