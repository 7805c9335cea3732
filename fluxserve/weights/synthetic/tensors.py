"""Seeded random tensors of a network, as its file names, cuts and packs them. Writes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fluxserve.models.synthetic import Packing, SyntheticNetwork
from fluxserve.tensors.quantize import quantize_rows
from fluxserve.tensors.reader import Recipe
from fluxserve.weights.files.fp8 import SCALES
from fluxserve.weights.files.gguf_writer import Q4_0, pack_q4_0
from fluxserve.weights.files.safetensors_writer import TensorSpec

DTYPE = torch.bfloat16
BIAS_SCALE = 0.02
NORM_SPREAD = 0.1


def specs(network: SyntheticNetwork) -> dict[str, TensorSpec]:
    """What the file will hold, in its order."""
    tensors = stored(network, lambda _, shape: torch.empty(shape, dtype=DTYPE, device="meta"))
    return {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors}


def stored(network: SyntheticNetwork, make: Callable[[str, tuple[int, ...]], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors as the file has them: the recipes backwards. make: (canonical name, shape) -> tensor."""
    for key, shape in network.shapes.items():
        recipe, tensor = network.recipes[key], make(key, shape)
        if recipe.op == "swap_halves":
            tensor = torch.cat(tensor.chunk(2)[::-1])
        elif recipe.op == "conv1x1":
            tensor = tensor[..., 0, 0]
        elif recipe.op == "flat":
            tensor = tensor[None]
        for part, rows in zip(recipe.parts, tensor.split(_rows(network, recipe, tensor.shape[0])), strict=True):
            yield from _packed(network.packing, part, rows)


def draw(network: SyntheticNetwork, seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """Values that keep a random model's activations near 1, from a generator of the tensor's own."""
    digest = hashlib.sha256(f"{seed}/{network.part}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
    noise = torch.randn(shape, generator=generator)
    if name.endswith(".bias"):
        return noise.mul_(BIAS_SCALE).to(DTYPE)
    if len(shape) == 1:
        return noise.mul_(NORM_SPREAD).add_(1.0).to(DTYPE)
    scale = network.scale(name, shape)
    return noise.mul_(torch.Size(shape[1:]).numel() ** -0.5 if scale is None else scale).to(DTYPE)


def _packed(packing: Packing, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if packing == "q4_0":
        packable = tensor.ndim == 2 and tensor.shape[1] % Q4_0.values == 0
        yield name, pack_q4_0(tensor) if packable else tensor.float()
    elif packing == "int8" and tensor.ndim == 2:
        values, scale = quantize_rows(tensor, torch.int8)
        yield name, values
        yield name.removesuffix("weight") + SCALES[-1], scale
    else:
        yield name, tensor.to(torch.float8_e4m3fn) if packing == "fp8" and tensor.ndim == 2 else tensor


def _rows(network: SyntheticNetwork, recipe: Recipe, rows: int) -> list[int]:
    """How many rows each part has: all are as wide as the model, but the last, which takes the rest."""
    others = len(recipe.parts) - 1
    return [network.width] * others + [rows - network.width * others]
