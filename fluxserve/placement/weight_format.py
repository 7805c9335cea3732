"""In what format a weight lies in memory: in the compute dtype, packed as in its file, or packed at load."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fluxserve.placement.flat import Weight
from fluxserve.tensors.quantize import QuantMode, quantize
from fluxserve.tensors.reader import TensorReader


@dataclass(frozen=True)
class WeightFormat:
    """dtype: of what is not packed. quant: how to pack the matrices that the file does not pack; None: not at all.

    tables: endings of matrices that are looked up, not multiplied with, and so never packed.
    """

    dtype: torch.dtype
    quant: QuantMode | None = None
    tables: tuple[str, ...] = ()

    @property
    def plain(self) -> WeightFormat:
        """The same dtype, nothing packed."""
        return WeightFormat(self.dtype)

    def meta(self, reader: TensorReader, key: str) -> Weight:
        """What the weight will be on the meta device, without reading it."""
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
        matrix = key.endswith(".weight") and weight.ndim == 2 and not key.endswith(self.tables)
        return quantize(weight, self.quant) if self.quant is not None and matrix else weight
