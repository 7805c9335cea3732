"""How fast this machine computes, unpacks and copies, measured in a moment, and what a step should therefore take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fluxserve.models.family import Arithmetic, BlockLayout
from fluxserve.placement.bind import unpack_to_scratch
from fluxserve.placement.place import block_keys, streamed_format
from fluxserve.placement.plan import Plan, Work
from fluxserve.placement.weight_format import WeightFormat
from fluxserve.tensors.packed import PackedWeight
from fluxserve.tensors.reader import TensorReader

REPEATS = 3
SAMPLE_TOKENS = 512
COPY_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Rates:
    """linear, attention: floating-point operations a second. copy: bytes a second into a slot.

    unpack: values a second out of packed weights; infinite where none are. copies_hide: behind computing, as a GPU's
    do; a CPU copies with the cores that compute.
    """

    linear: float
    attention: float
    copy: float
    unpack: float = math.inf
    copies_hide: bool = True


def packed_sample(
    reader: TensorReader, layout: BlockLayout, plan: Plan, fmt: WeightFormat, device: torch.device
) -> PackedWeight | None:
    """The first block's largest matrix as it will be, on the device; None where it is not packed.

    fmt: of resident blocks.
    """
    largest = max(block_keys(reader, layout)[0].values(), key=lambda key: math.prod(reader.shape(key)))
    weight = (fmt if plan.resident else streamed_format(fmt, device)).read(reader, largest, device)
    return weight if isinstance(weight, PackedWeight) else None


def measure_rates(
    costs: Arithmetic, device: torch.device, dtype: torch.dtype, packed: PackedWeight | None = None
) -> Rates:
    """The best of a few runs of one Linear, one attention and one copy, of the model's own shapes, and one unpacking.

    packed: a sample of the blocks' matrices; None where they are not packed.
    """
    x = torch.randn(SAMPLE_TOKENS, costs.hidden, device=device, dtype=dtype)
    weight = torch.randn(costs.mlp_hidden, costs.hidden, device=device, dtype=dtype)
    q = torch.randn(1, costs.heads, SAMPLE_TOKENS, costs.head_dim, device=device, dtype=dtype)
    host = torch.ones(COPY_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    slot = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    linear_s = _seconds(lambda: F.linear(x, weight), device)
    attention_s = _seconds(lambda: F.scaled_dot_product_attention(q, q, q), device)
    copy_s = _seconds(lambda: slot.copy_(host, non_blocking=True), device)
    unpack_s = _seconds(lambda: unpack_to_scratch(packed, dtype), device) if packed is not None else 0.0
    return Rates(
        linear=2 * SAMPLE_TOKENS * weight.numel() / linear_s,
        attention=4 * SAMPLE_TOKENS**2 * costs.hidden / attention_s,
        copy=COPY_BYTES / copy_s,
        unpack=math.prod(packed.shape) / unpack_s if packed is not None else math.inf,
        copies_hide=device.type != "cpu",
    )


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
    compute += costs.matrix_values / rates.unpack
    copying = plan.streamed_bytes / rates.copy
    return max(compute, copying) if rates.copies_hide else compute + copying


def linear_flops(costs: Arithmetic, work: Work) -> float:
    """Of all Linears in the blocks for one step."""
    return 2.0 * work.batch * work.tokens * costs.token_values


def attention_flops(costs: Arithmetic, work: Work) -> float:
    """Scores and their sum over values, in all blocks."""
    return 4.0 * work.batch * work.tokens**2 * costs.hidden * costs.blocks
