"""Safetensors files written tensor by tensor, so that a model of any size needs little memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fluxserve.weights.files.safetensors_file import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_HEADER_ALIGNMENT = 8


@dataclass(frozen=True)
class TensorSpec:
    """What the header says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_safetensors(path: Path, specs: Mapping[str, TensorSpec], tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Takes from `tensors` those of `specs`, which come in its order."""
    with path.open("wb") as file:
        file.write(_header(specs))
        for expected, spec in specs.items():
            name, tensor = next(tensors)
            assert (name, tuple(tensor.shape), tensor.dtype) == (expected, spec.shape, spec.dtype), name
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def write_shards(
    folder: Path, name: str, specs: Mapping[str, TensorSpec], tensors: Iterable[tuple[str, Tensor]], shard_bytes: int
) -> None:
    """One file `name`, or several of at most `shard_bytes` and their index, named as the Hub's libraries name them."""
    shards, stream = _shards(specs, shard_bytes), iter(tensors)
    if len(shards) == 1:
        write_safetensors(folder / name, specs, stream)
        return
    stem = name.removesuffix(".safetensors")
    names = [f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for shard_name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / shard_name, shard, stream)
    index = {
        "metadata": {"total_size": sum(spec.nbytes for spec in specs.values())},
        "weight_map": {key: names[i] for i, shard in enumerate(shards) for key in shard},
    }
    (folder / f"{name}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(specs: Mapping[str, TensorSpec], shard_bytes: int) -> list[dict[str, TensorSpec]]:
    shards: list[dict[str, TensorSpec]] = [{}]
    room = shard_bytes
    for key, spec in specs.items():
        if shards[-1] and spec.nbytes > room:
            shards.append({})
            room = shard_bytes
        shards[-1][key] = spec
        room -= spec.nbytes
    return shards


def _header(specs: Mapping[str, TensorSpec]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for key, spec in specs.items():
        header[key] = {
            "dtype": _NAMES[spec.dtype],
            "shape": spec.shape,
            "data_offsets": (position, position + spec.nbytes),
        }
        position += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
