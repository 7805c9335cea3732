"""In what format a weight lies in memory: in the compute dtype, packed as in its file, or packed at load."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fluxserve.placement.flat import Weight
from fluxserve.tensors import eight_bit
from fluxserve.tensors.quantize import QuantMode, quantize
from fluxserve.tensors.reader import TensorReader


@dataclass(frozen=True)
class WeightFormat:
    """dtype: of what is not packed. quant: how to pack the matrices that the file does not pack; None: not at all.

    tables: endings of matrices that are looked up, not multiplied with, and so never packed. product: the 8-bit
    arithmetic that matrices are made for, whatever the file packs; None: exact. channels_last: how the weights of
    convolutions lie.
    """

    dtype: torch.dtype
    quant: QuantMode | None = None
    tables: tuple[str, ...] = ()
    product: QuantMode | None = None
    channels_last: bool = False

    @property
    def plain(self) -> WeightFormat:
        """The same dtype, nothing packed."""
        return WeightFormat(self.dtype)

    @property
    def unpacked(self) -> WeightFormat:
        """The same, but for packing what the file does not pack to save memory."""
        return replace(self, quant=None)

    @property
    def packs(self) -> bool:
        """Whether any matrix is packed that the file does not pack so."""
        return self.quant is not None or self.product is not None

    def meta(self, reader: TensorReader, key: str) -> Weight:
        """What the weight will be on the meta device, without reading it."""
        packed = reader.packed_meta(key)
        if packed is not None and self._product_of(reader, key) is None:
            return packed
        return self._packed(reader, key, self._laid(torch.empty(reader.shape(key), dtype=self.dtype, device="meta")))

    def read(self, reader: TensorReader, key: str, device: torch.device) -> Weight:
        """The weight on a device; a view of the mapped file where nothing has to change."""
        packed = reader.packed(key)
        if packed is None:
            return self._packed(reader, key, self._laid(reader.read(key).to(device, self.dtype)))
        product = self._product_of(reader, key)
        return packed.to(device) if product is None else eight_bit.as_factor(packed.to(device), product)

    def repacks(self, reader: TensorReader, key: str) -> bool:
        """Whether a matrix is made for 8-bit arithmetic at each read, because the file's bytes do not do."""
        product, packed = self._product_of(reader, key), reader.packed_meta(key)
        return product is not None and (packed is None or not eight_bit.holds(packed, product))

    def _laid(self, weight: Tensor) -> Tensor:
        return (
            weight.contiguous(memory_format=torch.channels_last) if self.channels_last and weight.ndim == 4 else weight
        )

    def _packed(self, reader: TensorReader, key: str, weight: Tensor) -> Weight:
        product = self._product_of(reader, key)
        if product is not None:
            return eight_bit.as_factor(weight, product)
        return quantize(weight, self.quant) if self.quant is not None and self._is_matrix(reader, key) else weight

    def _product_of(self, reader: TensorReader, key: str) -> QuantMode | None:
        """The 8-bit arithmetic that this matrix is for."""
        return self.product if self._is_matrix(reader, key) and eight_bit.takes(reader.shape(key)) else None

    def _is_matrix(self, reader: TensorReader, key: str) -> bool:
        return key.endswith(".weight") and len(reader.shape(key)) == 2 and not key.endswith(self.tables)
