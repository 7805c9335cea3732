"""Writing GGUF files tensor by tensor, packed as Q4_0. Needs the `gguf` extra."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fluxserve.errors import ConfigError
from fluxserve.weights.files.gguf_blocks import BLOCKS
from fluxserve.weights.files.safetensors_writer import TensorSpec

Q4_0 = BLOCKS["Q4_0"]


def pack_q4_0(weight: Tensor) -> Tensor:
    """(out, in) of any float dtype, `in` a multiple of 32 -> (out, bytes) uint8, equal to gguf-py's."""
    blocks = weight.float().reshape(-1, Q4_0.values)
    largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    d = largest / -8
    inverse = torch.where(d == 0, torch.zeros_like(d), 1 / d)
    values = (blocks * inverse + 8.5).trunc().clamp(0, 15).to(torch.uint8)
    low, high = values.chunk(2, dim=1)
    packed = torch.cat([d.to(torch.float16).view(torch.uint8), low | (high << 4)], dim=1)
    return packed.reshape(weight.shape[0], -1)


def write_gguf(
    path: Path, architecture: str, specs: Mapping[str, TensorSpec], tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Takes `tensors` in the order of `specs`: uint8 matrices are Q4_0, the others float32.

    Raises:
        ConfigError: the `gguf` extra is not installed.
    """
    try:
        from gguf import GGMLQuantizationType, GGUFWriter
    except ImportError as error:
        raise ConfigError("writing GGUF files needs an extra: pip install 'fluxserve[gguf]'") from error
    writer = GGUFWriter(path, architecture)
    for name, spec in specs.items():
        packed = spec.dtype == torch.uint8
        kind = GGMLQuantizationType.Q4_0 if packed else GGMLQuantizationType.F32
        dtype = torch.empty(0, dtype=spec.dtype).numpy().dtype
        writer.add_tensor_info(name, spec.shape, dtype, spec.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, tensor in tensors:
        writer.write_tensor_data(tensor.contiguous().numpy())
    writer.close()
