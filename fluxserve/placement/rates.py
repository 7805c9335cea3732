"""How fast this machine computes, unpacks and copies, measured in a moment, and what a step should therefore take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F

from fluxserve.models.family import Arithmetic, BlockLayout
from fluxserve.placement.bind import unpack_to_scratch
from fluxserve.placement.flat import Weight
from fluxserve.placement.place import block_keys, streamed_format
from fluxserve.placement.plan import Plan, Work
from fluxserve.placement.weight_format import WeightFormat
from fluxserve.tensors.eight_bit import EightBitRows, as_factor, linear
from fluxserve.tensors.packed import PackedWeight
from fluxserve.tensors.quantize import QuantMode
from fluxserve.tensors.reader import TensorReader

W = TypeVar("W", bound=Weight)

REPEATS = 3
SAMPLE_TOKENS, GPU_SAMPLE_TOKENS = 512, 4096
"""Rows of what is measured: a GPU is not filled by fewer."""
ELEMENTWISE_PASSES = 50
"""Over a token's width in a block, for norms, modulation, rotary positions, activations and copies: an H100 took 53 to
62 for FLUX.1 and FLUX.2."""
COPY_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Rates:
    """linear, attention: floating-point operations a second. copy: bytes a second into a slot.

    unpack: values a second out of packed weights; infinite where none are. pack: values a second that are packed on
    their way into a slot; infinite where none are. copies_hide: behind computing, as a GPU's do; a CPU copies with the
    cores that compute. elementwise: values a second that are read, changed and written; infinite to leave that out.
    """

    linear: float
    attention: float
    copy: float
    elementwise: float = math.inf
    unpack: float = math.inf
    pack: float = math.inf
    copies_hide: bool = True


def packed_sample(
    reader: TensorReader, layout: BlockLayout, plan: Plan, fmt: WeightFormat, device: torch.device
) -> PackedWeight | None:
    """The first block's largest matrix as it will be, on the device; None where it is not packed.

    fmt: of resident blocks.
    """
    largest = _largest_matrix(reader, layout)
    weight = (fmt if plan.resident else streamed_format(fmt, device)).read(reader, largest, device)
    return weight if isinstance(weight, PackedWeight) else None


def packed_anew(
    reader: TensorReader, layout: BlockLayout, plan: Plan, fmt: WeightFormat, device: torch.device
) -> QuantMode | None:
    """The arithmetic for which streamed blocks are packed at every step; None where they are read as they are."""
    streamed = streamed_format(fmt, device)
    at_each_step = bool(plan.streamed) and device.type != "cuda"
    return streamed.product if at_each_step and streamed.repacks(reader, _largest_matrix(reader, layout)) else None


def _largest_matrix(reader: TensorReader, layout: BlockLayout) -> str:
    return max(block_keys(reader, layout)[0].values(), key=lambda key: math.prod(reader.shape(key)))


def measure_rates(
    costs: Arithmetic,
    device: torch.device,
    dtype: torch.dtype,
    packed: PackedWeight | None = None,
    anew: QuantMode | None = None,
) -> Rates:
    """The best of a few runs of a Linear, an attention, a product of values and a copy, of the model's own shapes,
    and one unpacking.

    packed: a sample of the blocks' matrices; None where they are not packed. anew: see `packed_anew`.
    """
    tokens = SAMPLE_TOKENS if device.type == "cpu" else GPU_SAMPLE_TOKENS
    weight = torch.randn(costs.mlp_hidden, costs.hidden, device=device, dtype=dtype)
    x = torch.randn(tokens, costs.hidden, device=device, dtype=dtype)
    q = torch.randn(1, costs.heads, tokens, costs.head_dim, device=device, dtype=dtype)
    host = torch.ones(COPY_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    slot = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    attention_s = _seconds(lambda: F.scaled_dot_product_attention(q, q, q), device)
    copy_s = _seconds(lambda: slot.copy_(host, non_blocking=True), device)
    unpacked = packed if packed is not None and not isinstance(packed.scheme, EightBitRows) else None
    factor = packed if unpacked is None and packed is not None else weight
    return Rates(
        linear=_linear_rate(factor, tokens, dtype, device),
        attention=4 * tokens**2 * costs.hidden / attention_s,
        copy=COPY_BYTES / copy_s,
        elementwise=_values_rate(x, lambda sample: sample * sample, device),
        unpack=_values_rate(unpacked, lambda sample: unpack_to_scratch(sample, dtype), device),
        pack=_values_rate(weight if anew else None, lambda sample: as_factor(sample, anew or "int8"), device),
        copies_hide=device.type != "cpu",
    )


def _linear_rate(weight: Weight, tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a product with a matrix, exact or in 8 bits."""
    x = torch.randn(tokens, weight.shape[1], device=device, dtype=dtype)
    if isinstance(weight, PackedWeight):
        seconds = _seconds(lambda: linear(x, weight, None), device)
    else:
        seconds = _seconds(lambda: F.linear(x, weight), device)
    return 2 * tokens * math.prod(weight.shape) / seconds


def _values_rate(weight: W | None, action: Callable[[W], object], device: torch.device) -> float:
    """Values a second; infinite where there is nothing to do."""
    return math.inf if weight is None else math.prod(weight.shape) / _seconds(lambda: action(weight), device)


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    action()
    for _ in range(REPEATS):
        _synchronise(device)
        started = time.perf_counter()
        action()
        _synchronise(device)
        best = min(best, time.perf_counter() - started)
    return best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_seconds(costs: Arithmetic, plan: Plan, rates: Rates) -> float:
    """The expected time of one step of the planned work."""
    compute = linear_flops(costs, plan.work) / rates.linear + attention_flops(costs, plan.work) / rates.attention
    compute += costs.matrix_values / rates.unpack + elementwise_values(costs, plan.work) / rates.elementwise
    copying = plan.streamed_bytes / rates.copy + plan.streamed_bytes / rates.pack  # a packed value is a byte
    return max(compute, copying) if rates.copies_hide else compute + copying


def linear_flops(costs: Arithmetic, work: Work) -> float:
    """Of all Linears in the blocks for one step."""
    return 2.0 * work.batch * work.tokens * costs.token_values


def attention_flops(costs: Arithmetic, work: Work) -> float:
    """Scores and their sum over values, in all blocks."""
    return 4.0 * work.batch * work.tokens**2 * costs.hidden * costs.blocks


def elementwise_values(costs: Arithmetic, work: Work) -> float:
    """Read, changed and written beside the products, in all blocks."""
    return float(ELEMENTWISE_PASSES * work.batch * work.tokens * costs.hidden * costs.blocks)
