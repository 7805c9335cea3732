"""In what form a weight lies in memory: in the compute dtype, packed as in its file, or packed at load."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fluxserve.placement.flat import Weight
from fluxserve.tensors.quantize import Storage, quantize
from fluxserve.tensors.reader import TensorReader

NOT_A_LINEAR = "relative_attention_bias.weight"
"""T5's table of position biases: a matrix that is looked up, not multiplied with."""


@dataclass(frozen=True)
class Form:
    """dtype: of what is not packed. storage: how to pack the matrices that the file does not pack; None: not at all."""

    dtype: torch.dtype
    storage: Storage | None = None

    def meta(self, reader: TensorReader, key: str) -> Weight:
        """The weight's form on the meta device, without reading it."""
        packed = reader.packed_meta(key)
        if packed is not None:
            return packed
        weight = torch.empty(reader.shape(key), dtype=self.dtype, device="meta")
        return self._packed(weight, key)

    def read(self, reader: TensorReader, key: str, device: torch.device) -> Weight:
        """The weight on a device; a view of the mapped file where nothing has to change."""
        packed = reader.packed(key)
        if packed is not None:
            return packed.to(device)
        weight = reader.read(key).to(device, self.dtype)
        return self._packed(weight, key)

    def _packed(self, weight: Tensor, key: str) -> Weight:
        matrix = key.endswith(".weight") and weight.ndim == 2 and not key.endswith(NOT_A_LINEAR)
        return quantize(weight, self.storage) if self.storage is not None and matrix else weight
