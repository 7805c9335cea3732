"""What a module of a LoRA file changes in a network, and which Linears a network has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fluxserve.models.markings import PREFIXES
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


@dataclass(frozen=True)
class ControlTargets:
    """What a control LoRA changes beside Linears. input: the Linear whose inputs it widens, of the denoiser.

    norms: names of scales that it may replace -> the denoiser's tensors.
    """

    input: str
    norms: Mapping[str, str]


def linears(shapes: Shapes, tables: tuple[str, ...] = ()) -> dict[str, tuple[int, int]]:
    """(rows, columns) of each Linear. tables: endings of matrices that are no Linears."""
    return {
        key.removesuffix(".weight"): (shape[0], shape[1])
        for key, shape in shapes.items()
        if len(shape) == 2 and not key.endswith(tables)
    }


@dataclass(frozen=True)
class FusedNames:
    """How a transformer's Linears are called: by their own names, and by those of diffusers' parts stacked in them.

    shapes: (rows, columns) of each Linear. parts: diffusers' names by Linear. width: rows of each part but the last.
    swapped: the Linear whose halves diffusers has in the other order, if there is one.
    """

    network: str
    shapes: Mapping[str, tuple[int, int]]
    parts: Mapping[str, tuple[str, ...]]
    width: int
    swapped: str | None = None

    def targets(self) -> Iterator[tuple[str, LoraTarget]]:
        """Every spelling: bare, prefixed, and with underscores as kohya's, OneTrainer's and lycoris' files have it."""
        for linear, (rows, columns) in self.shapes.items():
            target = LoraTarget(self.network, linear, 0, rows, columns)
            yield f"lora_unet_{underscored(linear)}", target
            yield f"lycoris_{underscored(linear)}", target
            yield from prefixed(linear, target)
        for part, target in self._parts():
            yield f"lora_transformer_{underscored(part)}", target
            yield f"lycoris_{underscored(part)}", target
            yield from prefixed(part, target)

    def _parts(self) -> Iterator[tuple[str, LoraTarget]]:
        for linear, parts in self.parts.items():
            if linear not in self.shapes:
                continue
            rows, columns = self.shapes[linear]
            for number, part in enumerate(parts):
                first = number * self.width
                size = rows - first if number == len(parts) - 1 else self.width
                swap = linear == self.swapped
                yield part, LoraTarget(self.network, linear, first, size, columns, swap_halves=swap)


def prefixed(name: str, target: LoraTarget) -> Iterator[tuple[str, LoraTarget]]:
    """The name as it is, and behind what tools put before it."""
    return ((prefix + name, target) for prefix in ("", *PREFIXES))


def underscored(name: str) -> str:
    return name.replace(".", "_")


def numbers_apart(name: str) -> str:
    """A module's name, alike for all blocks."""
    return re.sub(r"(?<=[._])\d+(?=[._]|$)", "0", name)
