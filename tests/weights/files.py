"""Reads and rewrites safetensors files with the safetensors library itself, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluxserve.weights.packed import PackedWeight

DATA = Path(__file__).parents[1] / "data"


def listed(name: str) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a published network."""
    tensors = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))["tensors"]
    return {key: tuple(shape) for key, shape in tensors.items()}


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Applies `change` to the dict of the file's tensors, in place or by what it returns."""
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    changed = change(tensors)
    path.unlink()
    save_file(changed if isinstance(changed, dict) else tensors, path)


class ListedReader:
    """A TensorReader of shapes alone."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.source = "a list"
        self._shapes = shapes

    def keys(self) -> Collection[str]:
        return self._shapes.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._shapes[key]

    def dtype(self, key: str) -> torch.dtype:
        return torch.float32

    def read(self, key: str) -> Tensor:
        return torch.empty(self._shapes[key], device="meta")

    def packed(self, key: str) -> PackedWeight | None:
        return None

    def release(self, key: str) -> None:
        pass
