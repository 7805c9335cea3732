"""Safetensors files and sharded sets of them, read lazily under the names they hold.

Format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the tensors back to back).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxserve.errors import CheckpointError
from fluxserve.tensors.packed import PackedWeight
from fluxserve.tensors.reader import TensorReader, name_some
from fluxserve.weights.files.file_map import FileCopy, FileMap
from fluxserve.weights.files.json_file import parse_json, read_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: file bytes begin .. end."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """One file. metadata: the header's free text. content: of the file; None maps it.

    Raises:
        CheckpointError: no safetensors file, or a header that does not describe exactly the bytes that follow it.
    """

    def __init__(self, path: Path, content: FileMap | FileCopy | None = None) -> None:
        self.source, self.files = str(path), (path,)
        self._map = content or FileMap(path)
        header, payload = _header(path, self._map.bytes)
        metadata = header.pop("__metadata__", {})
        self.metadata: dict[str, str] = metadata if isinstance(metadata, dict) else {}
        self._entries = {key: _entry(path, key, value, payload) for key, value in header.items()}
        _require_gapless(path, list(self._entries.values()), payload)

    def keys(self) -> Collection[str]:
        return self._entries.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._entries[key].shape

    def dtype(self, key: str) -> torch.dtype:
        return self._entries[key].dtype

    def read(self, key: str) -> Tensor:
        entry = self._entries[key]
        return self._map.view(entry.begin, entry.end, entry.dtype).view(entry.shape)

    def packed(self, key: str) -> PackedWeight | None:
        return None

    def packed_meta(self, key: str) -> PackedWeight | None:
        return None

    def release(self, key: str) -> None:
        self._map.release(self._entries[key].begin, self._entries[key].end)


def _nothing(*_: Collection[str]) -> bool:
    return False


class Joined:
    """Several readers with different keys, as one."""

    def __init__(self, source: str, readers: Collection[TensorReader]) -> None:
        self.source = source
        self.files = tuple(path for reader in readers for path in reader.files)
        self._home = {key: reader for reader in readers for key in reader.keys()}

    def keys(self) -> Collection[str]:
        return self._home.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._home[key].shape(key)

    def dtype(self, key: str) -> torch.dtype:
        return self._home[key].dtype(key)

    def read(self, key: str) -> Tensor:
        return self._home[key].read(key)

    def packed(self, key: str) -> PackedWeight | None:
        return self._home[key].packed(key)

    def packed_meta(self, key: str) -> PackedWeight | None:
        return self._home[key].packed_meta(key)

    def release(self, key: str) -> None:
        self._home[key].release(key)


def shards_of(index: Path) -> dict[str, set[str]]:
    """What `*.safetensors.index.json` says: file name -> the tensors in it, sorted by name.

    Raises:
        CheckpointError: it is damaged, or names something else than safetensors files beside it.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: has no weight_map from tensor names to file names")
    shards: dict[str, set[str]] = {}
    for key, name in weight_map.items():
        shards.setdefault(name, set()).add(key)
    for name in shards:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: {name!r} is not the name of a safetensors file beside it")
    return dict(sorted(shards.items()))


def open_shards(index: Path, may_lack: Callable[[Collection[str], Collection[str]], bool] = _nothing) -> Joined:
    """The files that an index names; each must hold exactly the tensors the index gives it.

    may_lack: told all tensors and those of a shard that is not there, whether the others do.

    Raises:
        CheckpointError: a shard is missing or damaged, or index and shards disagree.
    """
    expected = shards_of(index)
    everything = frozenset().union(*expected.values())
    shards = {}
    for name, keys in expected.items():
        if (index.parent / name).exists() or not may_lack(everything, keys):
            shards[name] = SafetensorsFile(index.parent / name)
    for name, shard in shards.items():
        _require_indexed(index, shard, expected[name])
    return Joined(str(index), shards.values())


def _require_indexed(index: Path, shard: SafetensorsFile, expected: set[str]) -> None:
    missing, unexpected = expected - set(shard.keys()), set(shard.keys()) - expected
    differences = [f"missing {key}" for key in sorted(missing)] + [f"unexpected {key}" for key in sorted(unexpected)]
    if differences:
        raise CheckpointError(f"{shard.source}: does not hold what {index.name} says: {name_some(differences)}")


def _header(path: Path, content: Tensor) -> tuple[dict[str, Any], range]:
    """The JSON header, and the file bytes of the payload as a range."""
    size = len(content)
    length = int.from_bytes(content[:8].numpy().tobytes(), "little")
    if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
        raise CheckpointError(f"{path}: is no safetensors file, or was cut: its header ({length} bytes) does not fit")
    header = parse_json(content[8 : 8 + length].numpy().tobytes(), str(path))
    return header, range(8 + length, size)


def _entry(path: Path, key: str, value: Any, payload: range) -> _Entry:
    """One header entry, checked: known dtype, sane shape, offsets inside the payload and of the shape's size."""
    try:
        name, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: the header entry of {key} has no dtype, shape and data_offsets") from error
    if name not in DTYPES:
        raise CheckpointError(f"{path}: {key} has dtype {name}; fluxserve reads {', '.join(DTYPES)}")
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise CheckpointError(f"{path}: {key} has no whole numbers as shape and offsets")
    nbytes = DTYPES[name].itemsize
    for n in shape:
        nbytes *= n
    if end - begin != nbytes or payload.start + end > payload.stop:
        raise CheckpointError(
            f"{path}: {key} of shape {shape} in {name} is {nbytes} bytes, but lies at {begin} .. {end} "
            f"of {len(payload)} (a download cut short, perhaps)"
        )
    return _Entry(DTYPES[name], shape, payload.start + begin, payload.start + end)


def _require_gapless(path: Path, entries: list[_Entry], payload: range) -> None:
    position = payload.start
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != position:
            raise CheckpointError(f"{path}: tensors overlap or leave a gap at byte {position}")
        position = entry.end
    if position != payload.stop:
        raise CheckpointError(f"{path}: {payload.stop - position} bytes follow the last tensor")
