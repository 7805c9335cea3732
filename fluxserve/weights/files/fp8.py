"""Files of one byte a value, as matrices that may stay packed: float8, cast or scaled by ComfyUI's two ways; int8.

Old: a tensor `scaled_fp8` marks the file, `L.scale_weight` scales layer L. New: `L.comfy_quant` holds JSON that names
the format, `L.weight_scale` scales it; or the header's `_quantization_metadata` names the formats of all layers.
int8: `L.weight_scale`, a number a row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from fluxserve.errors import CheckpointError
from fluxserve.tensors.packed import PackedWeight
from fluxserve.tensors.quantize import pack_values
from fluxserve.tensors.reader import TensorReader
from fluxserve.weights.files.json_file import parse_json

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
READABLE_FORMATS = ("float8_e4m3fn", "float8_e5m2")
OLD_MARK = "scaled_fp8"
SCALES = ("scale_weight", "weight_scale")
UNUSED = ("scale_input", "input_scale", "comfy_quant")
"""Scales of activations matter to float8 matrix products alone, which fluxserve does not use."""

METADATA_FIELD = "_quantization_metadata"


class Float8Reader:
    """A reader whose float8 and scaled int8 tensors are read as float32, scaled where the file says so."""

    def __init__(self, reader: TensorReader) -> None:
        self.source, self.files = reader.source, reader.files
        self._reader = reader
        stored = reader.keys()
        weights = [key for key in stored if key.endswith(".weight")]
        companions = {
            weight: [f"{weight.removesuffix('weight')}{name}" for name in (*SCALES, *UNUSED)] for weight in weights
        }
        self._scales = {
            weight: name for weight, names in companions.items() for name in names[: len(SCALES)] if name in stored
        }
        consumed = {name for names in companions.values() for name in names} | {OLD_MARK}
        self._keys = [key for key in stored if key not in consumed]
        self._require_scales()

    def keys(self) -> Collection[str]:
        return self._keys

    def shape(self, key: str) -> tuple[int, ...]:
        return self._reader.shape(key)

    def dtype(self, key: str) -> torch.dtype:
        packed = self._reader.dtype(key) in FLOAT8 or key in self._scales
        return torch.float32 if packed else self._reader.dtype(key)

    def read(self, key: str) -> Tensor:
        tensor = self._reader.read(key)
        scale = self._scale(key)
        if scale is not None:
            return tensor.float() * (scale.float() if scale.numel() == 1 else scale.float().reshape(-1, 1))
        return tensor.float() if tensor.dtype in FLOAT8 else tensor

    def packed(self, key: str) -> PackedWeight | None:
        if self._reader.dtype(key) not in FLOAT8 and not self._is_int8(key):
            return self._reader.packed(key)
        if len(self.shape(key)) != 2:
            return None
        return pack_values(self._reader.read(key), self._scale(key))

    def packed_meta(self, key: str) -> PackedWeight | None:
        packed = self.packed(key)
        return packed.to(torch.device("meta")) if packed else None

    def release(self, key: str) -> None:
        self._reader.release(key)

    def _is_int8(self, key: str) -> bool:
        return self._reader.dtype(key) == torch.int8 and key in self._scales

    def _scale(self, key: str) -> Tensor | None:
        return self._reader.read(self._scales[key]) if key in self._scales else None

    def _require_scales(self) -> None:
        for key in self._keys:
            if self._reader.dtype(key) == torch.int8 and key not in self._scales:
                raise CheckpointError(f"{self.source}: {key} is int8 and has no {SCALES[-1]}")
        for weight, scale in self._scales.items():
            size, rows = torch.Size(self._reader.shape(scale)).numel(), self.shape(weight)[0]
            if size not in (1, rows):
                raise CheckpointError(f"{self.source}: {scale} has {size} values, {weight} takes 1 or {rows}")


def is_float8(reader: TensorReader) -> bool:
    return any(reader.dtype(key) in FLOAT8 or key.endswith(SCALES) for key in reader.keys())


def refuse_other_formats(reader: TensorReader, metadata: dict[str, str]) -> None:
    """Raises: CheckpointError that names the first layer quantised in a format that fluxserve does not read."""
    for layer, name in (*_formats_in_tensors(reader), *_formats_in_metadata(reader.source, metadata)):
        if name not in READABLE_FORMATS:
            raise CheckpointError(
                f"{reader.source}: {layer} is quantised as {name}; "
                f"fluxserve reads {' and '.join(READABLE_FORMATS)} of this kind, and GGUF and NF4 files"
            )


def _formats_in_tensors(reader: TensorReader) -> Iterator[tuple[str, object]]:
    for key in reader.keys():
        if key.endswith(".comfy_quant") and reader.dtype(key) == torch.uint8:
            described = parse_json(bytes(reader.read(key).tolist()), f"{reader.source}: {key}")
            yield key.removesuffix(".comfy_quant"), described.get("format")


def _formats_in_metadata(source: str, metadata: dict[str, str]) -> Iterator[tuple[str, object]]:
    if METADATA_FIELD in metadata:
        layers = parse_json(str(metadata[METADATA_FIELD]).encode(), f"{source}: {METADATA_FIELD}").get("layers")
        for layer, described in (layers if isinstance(layers, dict) else {}).items():
            yield layer, described.get("format") if isinstance(described, dict) else described
