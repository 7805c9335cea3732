"""GGUF files, read lazily under the names they hold; packed tensors stay packed. The header is gguf-py's to parse.

Needs the `gguf` extra. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fluxserve.errors import CheckpointError, ConfigError
from fluxserve.models import registry
from fluxserve.models.markings import GGUF_ANY
from fluxserve.tensors.packed import PackedWeight
from fluxserve.weights.files.file_map import FileMap
from fluxserve.weights.files.gguf_blocks import BLOCKS, Gguf

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SPLIT_COUNT = "split.count"
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: file bytes begin .. end. shape: as the model has it, whatever the blocks' rows are."""

    type: str
    shape: tuple[int, ...]
    begin: int
    end: int


class GgufFile:
    """One file. parts: how many the model was split into, of which this is one.

    Raises:
        CheckpointError: a damaged header, tensors outside the file, another kind of model, or types that are not read.
        ConfigError: the `gguf` extra is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.source, self.files = str(path), (path,)
        self._map = FileMap(path)
        parsed = _parse(path)
        _require_known(path, parsed)
        split = parsed.get_field(SPLIT_COUNT)
        self.parts = int(split.contents()) if split else 1
        self._entries = {tensor.name: _entry(path, parsed, tensor) for tensor in parsed.tensors}

    def keys(self) -> Collection[str]:
        return self._entries.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._entries[key].shape

    def dtype(self, key: str) -> torch.dtype:
        return PLAIN.get(self._entries[key].type, torch.float32)

    def read(self, key: str) -> Tensor:
        entry = self._entries[key]
        if entry.type in PLAIN:
            return self._map.view(entry.begin, entry.end, PLAIN[entry.type]).view(entry.shape)
        packed = self.packed(key)
        if packed is not None:
            return packed.unpack(torch.float32)
        flat = (1, torch.Size(entry.shape).numel())
        return Gguf(entry.type).unpack({"blocks": self._bytes(entry)}, flat, torch.float32).view(entry.shape)

    def packed(self, key: str) -> PackedWeight | None:
        entry = self._entries[key]
        if entry.type in PLAIN or len(entry.shape) != 2 or entry.shape[1] % BLOCKS[entry.type].values:
            return None
        rows, columns = entry.shape
        return PackedWeight(Gguf(entry.type), (rows, columns), {"blocks": self._bytes(entry).view(rows, -1)})

    def packed_meta(self, key: str) -> PackedWeight | None:
        packed = self.packed(key)
        return packed.to(torch.device("meta")) if packed else None

    def release(self, key: str) -> None:
        self._map.release(self._entries[key].begin, self._entries[key].end)

    def _bytes(self, entry: _Entry) -> Tensor:
        return self._map.view(entry.begin, entry.end, torch.uint8)


def _parse(path: Path) -> GGUFReader:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ConfigError(f"{path}: reading GGUF files needs an extra: pip install 'fluxserve[gguf]'") from error
    try:
        return GGUFReader(path)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path}: is a damaged GGUF file, or was cut short: {error}") from error


def _require_known(path: Path, parsed: GGUFReader) -> None:
    """What an absent architecture (stable-diffusion.cpp writes none) or one of GGUF_ANY is, the tensors' names tell."""
    field = parsed.get_field("general.architecture")
    architecture = field.contents() if field else None
    known = [name for part in registry.parts() for name in part.gguf_architectures]
    if architecture is not None and architecture not in (*known, *GGUF_ANY):
        raise CheckpointError(f"{path}: is a GGUF file of a {architecture}; fluxserve reads {', '.join(known)}")


def _entry(path: Path, parsed: GGUFReader, tensor: ReaderTensor) -> _Entry:
    """One tensor, checked: a type that is read, bytes inside the file, as many values as its shape has."""
    kind = tensor.tensor_type.name
    if kind not in PLAIN and kind not in BLOCKS:
        allowed = ", ".join((*PLAIN, *BLOCKS))
        raise CheckpointError(f"{path}: {tensor.name} is packed as {kind}; fluxserve reads {allowed}")
    begin, end = int(tensor.data_offset), int(tensor.data_offset + tensor.n_bytes)
    original = parsed.get_field(ORIGINAL_SHAPE + tensor.name)
    sizes = original.contents() if original else reversed(tensor.shape.tolist())
    shape = tuple(int(size) for size in sizes)
    if end > len(parsed.data) or min(shape, default=1) < 1 or torch.Size(shape).numel() != tensor.n_elements:
        raise CheckpointError(f"{path}: {tensor.name} of shape {shape} does not fit its place in the file")
    return _Entry(kind, shape, begin, end)
