"""Giving a module its weights, dense or packed, wherever they lie."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxserve.placement.flat import Weight
from fluxserve.tensors import eight_bit
from fluxserve.tensors.packed import PackedWeight


class PackedLinear(nn.Module):
    """A Linear whose matrix stays packed in memory and is unpacked, one layer at a time, when it is used.

    Saves what the packing saves, at the cost of unpacking once a call. packed: set by `bind`.
    """

    packed: PackedWeight
    bias: nn.Parameter | None

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    @property
    def weight(self) -> PackedWeight:
        """For code that asks a Linear's weight where it lives, or (as T5 does) whether it is a Tensor at all."""
        return self.packed

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, unpack_to_scratch(self.packed, x.dtype), self.bias)


class EightBitLinear(PackedLinear):
    """A Linear whose matrix is multiplied with as it lies, by activations packed as they come."""

    def forward(self, x: Tensor) -> Tensor:
        return eight_bit.linear(x, self.packed, self.bias)


class _Scratch(threading.local):
    memory = torch.empty(0, dtype=torch.uint8)


_scratch = _Scratch()


def unpack_to_scratch(packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """The matrix, which stands until this thread unpacks the next one.

    On a CPU all take turns in one piece of memory: the kernel needs as long to hand out a fresh one as we to unpack.
    """
    if packed.device.type != "cpu":
        return packed.unpack(dtype)
    nbytes = math.prod(packed.shape) * dtype.itemsize
    if _scratch.memory.numel() < nbytes:
        with torch.inference_mode(False):
            _scratch.memory = torch.empty(nbytes, dtype=torch.uint8)
    return packed.unpack(dtype, into=_scratch.memory[:nbytes].view(dtype).view(packed.shape))


def bind(module: nn.Module, weights: Mapping[str, Weight]) -> None:
    """Makes `weights` the parameters of their names, without a copy; a Linear becomes one of a packed matrix."""
    for name, weight in weights.items():
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if isinstance(weight, PackedWeight):
            kind = EightBitLinear if isinstance(weight.scheme, eight_bit.EightBitRows) else PackedLinear
            _packed_linear(module, path, kind).packed = weight
        else:
            owner.register_parameter(leaf, nn.Parameter(weight, requires_grad=False))


def _packed_linear(module: nn.Module, path: str, kind: type[PackedLinear]) -> PackedLinear:
    owner = module.get_submodule(path)
    if isinstance(owner, PackedLinear):
        return owner
    assert isinstance(owner, nn.Linear), f"{path} cannot have a packed weight"
    packed = kind(owner.bias)
    parent, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(parent), leaf, packed)
    return packed
