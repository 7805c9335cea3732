"""Four-bit files of bitsandbytes (NF4, FP4), with and without double quantisation. Does not use the library.

For a layer's `weight` of n values: `weight` uint8 (n / 2, 1), the first value in the high four bits; `weight.absmax`,
one scale a block; `weight.quant_map`, what each of the 16 codes means; `weight.quant_state.bitsandbytes__nf4`, JSON
with the shape and the block size. With double quantisation absmax is itself 8-bit codes into
`weight.nested_quant_map`, scaled by `weight.nested_absmax`, and offset.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxserve.errors import CheckpointError
from fluxserve.tensors.packed import PackedWeight
from fluxserve.tensors.reader import TensorReader
from fluxserve.weights.files.json_file import parse_json

STATE = ".quant_state.bitsandbytes__"
KINDS = ("nf4", "fp4")
_STATE_ENDINGS = tuple(STATE + kind for kind in KINDS)
COMPANIONS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")


@dataclass(frozen=True)
class FourBit:
    """Two values a byte. parts: data (out, in / 2) uint8; absmax (out, in / block) float32. codes: the 16 values."""

    kind: str
    block: int
    codes: tuple[float, ...]

    @property
    def name(self) -> str:
        return self.kind

    def unpack(self, parts: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        data, absmax = parts["data"], parts["absmax"]
        pairs = torch.tensor([(high, low) for high in self.codes for low in self.codes], device=data.device)  # (256, 2)
        values = F.embedding(data.int(), pairs).view(shape[0], -1, self.block)
        return values.mul_(absmax[..., None]).view(shape).to(dtype)


@dataclass(frozen=True)
class _State:
    """One weight's quantisation. nested_block, nested_offset: of double quantisation, else 0."""

    kind: str
    shape: tuple[int, int]
    block: int
    nested_block: int
    nested_offset: float


class FourBitReader:
    """A reader whose four-bit weights are read as float32 matrices of their true shapes."""

    def __init__(self, reader: TensorReader) -> None:
        self.source, self.files = reader.source, reader.files
        self._reader = reader
        self._states = {key.split(STATE)[0]: self._state(key) for key in reader.keys() if key.endswith(_STATE_ENDINGS)}
        consumed = {f"{weight}{STATE}{state.kind}" for weight, state in self._states.items()}
        consumed |= {f"{weight}.{name}" for weight in self._states for name in COMPANIONS}
        self._keys = [key for key in reader.keys() if key not in consumed]
        for weight in self._states:
            self._require_sizes(weight)

    def keys(self) -> Collection[str]:
        return self._keys

    def shape(self, key: str) -> tuple[int, ...]:
        return self._states[key].shape if key in self._states else self._reader.shape(key)

    def dtype(self, key: str) -> torch.dtype:
        return torch.float32 if key in self._states else self._reader.dtype(key)

    def read(self, key: str) -> Tensor:
        packed = self.packed(key)
        return packed.unpack(torch.float32) if packed else self._reader.read(key)

    def packed(self, key: str) -> PackedWeight | None:
        if key not in self._states:
            return self._reader.packed(key)
        state = self._states[key]
        rows = state.shape[0]
        parts = {"data": self._reader.read(key).view(rows, -1), "absmax": self._absmax(key, state).view(rows, -1)}
        return PackedWeight(self._scheme(key, state), state.shape, parts)

    def packed_meta(self, key: str) -> PackedWeight | None:
        if key not in self._states:
            return self._reader.packed_meta(key)
        state = self._states[key]
        rows, columns = state.shape
        parts = {
            "data": torch.empty(rows, columns // 2, dtype=torch.uint8, device="meta"),
            "absmax": torch.empty(rows, columns // state.block, device="meta"),
        }
        return PackedWeight(self._scheme(key, state), state.shape, parts)

    def release(self, key: str) -> None:
        self._reader.release(key)

    def _scheme(self, key: str, state: _State) -> FourBit:
        return FourBit(state.kind, state.block, tuple(self._reader.read(f"{key}.quant_map").float().tolist()))

    def _absmax(self, key: str, state: _State) -> Tensor:
        """One float32 a block: the second quantisation, if there is one, is undone."""
        absmax = self._reader.read(f"{key}.absmax")
        if not state.nested_block:
            return absmax.float()
        codes = self._reader.read(f"{key}.nested_quant_map").float()
        scales = self._reader.read(f"{key}.nested_absmax").float()
        wide = codes[absmax.int()] * scales.repeat_interleave(state.nested_block)[: absmax.numel()]
        return wide + state.nested_offset

    def _state(self, key: str) -> _State:
        described = parse_json(bytes(self._reader.read(key).tolist()), f"{self.source}: {key}")
        try:
            rows, columns = (_whole(n) for n in described["shape"])
            nested = _whole(described.get("nested_blocksize", 0))
            offset = float(described.get("nested_offset", 0.0))
            return _State(key.rpartition("__")[2], (rows, columns), _whole(described["blocksize"]), nested, offset)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.source}: {key} does not describe a four-bit matrix: {error}") from error

    def _require_sizes(self, weight: str) -> None:
        """Every companion is there with as many values as the shape needs, and no block crosses a row's end."""
        state = self._states[weight]
        rows, columns = state.shape
        if state.block < 1 or columns % state.block or columns % 2:
            raise self._error(weight, f"rows of {columns} values are not whole blocks of {state.block}")
        blocks = rows * columns // state.block
        expected = {weight: rows * columns // 2, f"{weight}.absmax": blocks, f"{weight}.quant_map": 16}
        if state.nested_block:
            expected |= {f"{weight}.nested_absmax": -(-blocks // state.nested_block), f"{weight}.nested_quant_map": 256}
        for key, size in expected.items():
            found = torch.Size(self._reader.shape(key)).numel() if key in self._reader.keys() else 0
            if found != size:
                raise self._error(weight, f"{key} has {found} values, expected {size}")

    def _error(self, weight: str, message: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: {weight}: {message}")


def is_four_bit(reader: TensorReader) -> bool:
    return any(STATE in key for key in reader.keys())


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value
