"""Reads and rewrites safetensors files with the safetensors library itself, for tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluxserve.models.flux1.family import TRANSFORMER
from fluxserve.tensors.packed import PackedWeight
from fluxserve.tensors.reader import TensorReader
from fluxserve.weights.checkpoint import Checkpoint, open_checkpoint
from fluxserve.weights.files.identify import components, open_file
from fluxserve.weights.verify import SUMS, hash_of

QKV = "double_blocks.0.img_attn.qkv.weight"
DATA = Path(__file__).parents[1] / "data"


def listed(name: str) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a published network."""
    tensors = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))["tensors"]
    return {key: tuple(shape) for key, shape in tensors.items()}


def open_quietly(model: Path | str, text_encoders: Path | str | None = None) -> Checkpoint:
    return open_checkpoint(str(model), str(text_encoders) if text_encoders else None, lambda *_: None)


def transformer_of(path: Path) -> TensorReader:
    """The transformer in a file, under canonical names."""
    return components(open_file(path))[TRANSFORMER]


def relative_error(values: Tensor, reference: Tensor) -> float:
    return float((values.float() - reference.float()).norm() / reference.float().norm())


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Applies `change` to the dict of the file's tensors, in place or by what it returns."""
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    changed = change(tensors)
    path.unlink()
    save_file(changed if isinstance(changed, dict) else tensors, path)


def write_sums(folder: Path) -> Path:
    """Lists every file below a folder in its SHA256SUMS, as `sha256sum` does; returns the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{hash_of(path, lambda _: None)}  {path.relative_to(folder)}\n" for path in files]
    (folder / SUMS).write_text("".join(lines))
    return folder


def flip_a_bit(path: Path, untold: bool = False) -> None:
    """Of the data near the end, which no header describes. untold: the file's time of change stays what it was."""
    raw, before = bytearray(path.read_bytes()), path.stat()
    raw[-100] ^= 1
    path.write_bytes(bytes(raw))
    if untold:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class ListedReader:
    """A TensorReader of shapes alone."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.source, self.files = "a list", ()
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

    def packed_meta(self, key: str) -> PackedWeight | None:
        return None

    def release(self, key: str) -> None:
        pass


class HalfReader(ListedReader):
    """The same in bfloat16."""

    def dtype(self, key: str) -> torch.dtype:
        return torch.bfloat16
