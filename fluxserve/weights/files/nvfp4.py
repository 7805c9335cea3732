"""NVFP4 matrices as Black Forest Labs publishes them: four bits a value, a float8 scale a block, one scale for all.

For layer L of shape (out, in): `L.weight` uint8 (out, in / 2), the first value of two in the low four bits;
`L.weight_scale` e4m3 (out, in / 16); `L.weight_scale_2` one float32; `L.input_scale`, of activations, is not used.
Follows huggingface/diffusers `quantizers/bfl/utils.py`. What ComfyUI has marked may have its scales in another
order and is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fluxserve.errors import CheckpointError
from fluxserve.tensors.packed import PackedWeight
from fluxserve.tensors.reader import TensorReader

BLOCK = 16
"""Values that share a scale."""
MARK = ".weight_scale_2"
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = torch.tensor([*_MAGNITUDES, *(-magnitude for magnitude in _MAGNITUDES)])
"""What each code means (E2M1)."""


@dataclass(frozen=True)
class Nvfp4:
    """parts: data (out, in / 2) uint8, scale (out, in / 16) e4m3 as uint8, scale_2 (out, 1) float32."""

    name: str = "nvfp4"

    def unpack(self, parts: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        data = parts["data"]
        codes = torch.stack([data & 15, data >> 4], dim=-1).flatten(-2).int()  # (out, in)
        values = _VALUES.to(data.device)[codes].unflatten(-1, (-1, BLOCK))
        scale = parts["scale"].view(torch.float8_e4m3fn).float() * parts["scale_2"]
        return values.mul_(scale[..., None]).view(shape).to(dtype)


class Nvfp4Reader:
    """A reader whose NVFP4 matrices have the one name and shape of what they stand for.

    Raises:
        CheckpointError: sizes do not fit together.
    """

    def __init__(self, reader: TensorReader) -> None:
        self.source, self.files = reader.source, reader.files
        self._reader = reader
        stored = reader.keys()
        layers = [key.removesuffix(MARK) for key in stored if key.endswith(MARK)]
        self._packed = {f"{layer}.weight": layer for layer in layers}
        parts = ("weight_scale", "weight_scale_2", "input_scale")
        consumed = {f"{layer}.{part}" for layer in layers for part in parts}
        self._keys = [key for key in stored if key not in consumed]
        for layer in layers:
            self._require_fit(layer)

    def keys(self) -> Collection[str]:
        return self._keys

    def shape(self, key: str) -> tuple[int, ...]:
        shape = self._reader.shape(key)
        return (shape[0], 2 * shape[1]) if key in self._packed else shape

    def dtype(self, key: str) -> torch.dtype:
        return torch.float32 if key in self._packed else self._reader.dtype(key)

    def read(self, key: str) -> Tensor:
        packed = self.packed(key)
        return self._reader.read(key) if packed is None else packed.unpack(torch.float32)

    def packed(self, key: str) -> PackedWeight | None:
        if key not in self._packed:
            return self._reader.packed(key)
        layer, (rows, columns) = self._packed[key], self.shape(key)
        scale_2 = self._reader.read(layer + MARK).float().reshape(1, 1)
        parts = {
            "data": self._reader.read(key),
            "scale": self._reader.read(f"{layer}.weight_scale").view(torch.uint8),
            "scale_2": scale_2.expand(rows, 1).contiguous(),
        }
        return PackedWeight(Nvfp4(), (rows, columns), parts)

    def packed_meta(self, key: str) -> PackedWeight | None:
        packed = self.packed(key)
        return packed.to(torch.device("meta")) if packed else None

    def release(self, key: str) -> None:
        self._reader.release(key)

    def _require_fit(self, layer: str) -> None:
        for name, dtype in (("weight", torch.uint8), ("weight_scale", torch.float8_e4m3fn)):
            key = f"{layer}.{name}"
            if key not in self._reader.keys():
                raise CheckpointError(f"{self.source}: missing {key}")
            if self._reader.dtype(key) != dtype or len(self._reader.shape(key)) != 2:
                raise CheckpointError(f"{self.source}: {key} is no matrix of {str(dtype).removeprefix('torch.')}")
        rows, columns = self.shape(f"{layer}.weight")
        scales, for_all = (self._reader.shape(f"{layer}.{name}") for name in ("weight_scale", "weight_scale_2"))
        if columns % BLOCK or scales != (rows, columns // BLOCK) or torch.Size(for_all).numel() != 1:
            raise CheckpointError(
                f"{self.source}: {layer} of shape {(rows, columns)} has scales of shapes {scales} and {for_all}; "
                f"NVFP4 has one for {BLOCK} values of a row, and one for all"
            )


def is_nvfp4(reader: TensorReader) -> bool:
    return any(key.endswith(MARK) for key in reader.keys())
