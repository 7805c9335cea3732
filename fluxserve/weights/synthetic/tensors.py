"""Seeded random tensors of a network, as its file names, cuts and packs them. Writes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fluxserve.tensors.reader import Recipe
from fluxserve.weights.files.gguf_writer import Q4_0, pack_q4_0
from fluxserve.weights.files.identify import Part
from fluxserve.weights.files.safetensors_writer import TensorSpec

Packing = Literal["bf16", "fp8", "q4_0"]

DTYPE = torch.bfloat16
BIAS_SCALE = 0.02
NORM_SPREAD = 0.1


@dataclass(frozen=True)
class Network:
    """One network to write. recipes: how its canonical tensors (shapes) are made of those in the file.

    packing: of its matrices; fp8 is a plain cast.
    """

    part: Part
    folder: str
    filename: str
    shapes: Mapping[str, tuple[int, ...]]
    recipes: Mapping[str, Recipe]
    config: Mapping[str, Any]
    packing: Packing = "bf16"


def specs(network: Network) -> dict[str, TensorSpec]:
    """What the file will hold, in its order."""
    tensors = stored(network, lambda _, shape: torch.empty(shape, dtype=DTYPE, device="meta"))
    return {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors}


def stored(network: Network, make: Callable[[str, tuple[int, ...]], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors as the file has them: the recipes backwards. make: (canonical name, shape) -> tensor."""
    for key, shape in network.shapes.items():
        recipe, tensor = network.recipes[key], make(key, shape)
        if recipe.op == "swap_halves":
            tensor = torch.cat(tensor.chunk(2)[::-1])
        elif recipe.op == "conv1x1":
            tensor = tensor[..., 0, 0]
        for part, rows in zip(recipe.parts, tensor.split(_rows(network, recipe, shape)), strict=True):
            yield part, _packed(network.packing, rows)


def as_named(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Recipe]:
    """Recipes of a file that has the canonical names."""
    return {key: Recipe((key,)) for key in shapes}


def draw(network: Network, seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """Values that keep a random model's activations near 1, from a generator of the tensor's own."""
    digest = hashlib.sha256(f"{seed}/{network.part}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
    noise = torch.randn(shape, generator=generator)
    if name.endswith(".bias"):
        return noise.mul_(BIAS_SCALE).to(DTYPE)
    if len(shape) == 1:
        return noise.mul_(NORM_SPREAD).add_(1.0).to(DTYPE)
    return noise.mul_(_scale(network, name, shape)).to(DTYPE)


def _packed(packing: Packing, tensor: Tensor) -> Tensor:
    if packing == "fp8":
        return tensor.to(torch.float8_e4m3fn) if tensor.ndim == 2 else tensor
    if packing == "q4_0":
        return pack_q4_0(tensor) if tensor.ndim == 2 and tensor.shape[1] % Q4_0.values == 0 else tensor.float()
    return tensor


def _rows(network: Network, recipe: Recipe, shape: tuple[int, ...]) -> list[int]:
    """How many rows each part has: q, k and v are as wide as the model, the last part takes the rest."""
    width = network.shapes["img_in.weight"][0] if len(recipe.parts) > 1 else 0
    return [width] * (len(recipe.parts) - 1) + [shape[0] - width * (len(recipe.parts) - 1)]


def _scale(network: Network, name: str, shape: tuple[int, ...]) -> float:
    fan_in = torch.Size(shape[1:]).numel()
    if name in ("shared.weight", "embeddings.token_embedding.weight"):
        return 1.0
    if name.endswith(("position_embedding.weight", "relative_attention_bias.weight")):
        return NORM_SPREAD
    if network.part == "t5" and name.endswith("SelfAttention.q.weight"):
        return float((fan_in * network.config["d_kv"]) ** -0.5)  # T5 divides by no root of d_kv
    return float(fan_in**-0.5)
