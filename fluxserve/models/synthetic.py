"""What a model of random weights consists of, as a family tells it: shapes, file names, configs. Writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fluxserve.tensors.reader import Recipe, Shapes

Layout = Literal["diffusers", "bfl"]
Packing = Literal["bf16", "fp8", "int8", "q4_0"]

ENDINGS: dict[Packing, str] = {
    "bf16": ".safetensors",
    "fp8": "-fp8.safetensors",
    "int8": "-int8.safetensors",
    "q4_0": "-Q4_0.gguf",
}
"""Of single files."""


def _no_scale(_name: str, _shape: tuple[int, ...]) -> float | None:
    return None


@dataclass(frozen=True)
class SyntheticNetwork:
    """One network to write. recipes: how its canonical tensors (shapes) are made of those in the file.

    width: rows of each part of a stacked tensor, but the last, which takes the rest. scale: the standard deviation of a
    tensor; None for the usual one, that keeps activations near 1. packing: of its matrices; fp8 is a plain cast,
    int8 has a scale a row.
    gguf_architecture: what a GGUF file of it calls itself.
    """

    part: str
    folder: str
    filename: str
    shapes: Shapes
    recipes: Mapping[str, Recipe]
    config: Mapping[str, Any]
    width: int
    scale: Callable[[str, tuple[int, ...]], float | None] = _no_scale
    packing: Packing = "bf16"
    gguf_architecture: str = ""


@dataclass(frozen=True)
class SyntheticModel:
    """tokenizers: by folder, what writes each. files: further JSON files by path, for the layouts that have them."""

    networks: tuple[SyntheticNetwork, ...]
    tokenizers: Mapping[str, Callable[[Path], None]]
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def as_named(shapes: Shapes) -> dict[str, Recipe]:
    """Recipes of a file that has the canonical names."""
    return {key: Recipe((key,)) for key in shapes}
