"""How fast this machine computes, unpacks and copies, measured in a moment, and what a step should therefore take.

Knows no weights but one packed matrix as a sample: the arithmetic of a step is counted from sizes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fluxserve.models.flux1.variants import FluxParams
from fluxserve.placement.bind import unpack_to_scratch
from fluxserve.placement.place import streamed_form
from fluxserve.placement.plan import Plan, Work
from fluxserve.placement.weight_format import Form
from fluxserve.tensors.packed import PackedWeight
from fluxserve.tensors.reader import TensorReader

REPEATS = 3
SAMPLE_TOKENS = 512
COPY_BYTES = 64 * 2**20
SAMPLE_WEIGHT = "double_blocks.0.img_mlp.0.weight"
"""Of the size that most are."""


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


def packed_sample(reader: TensorReader, plan: Plan, form: Form, device: torch.device) -> PackedWeight | None:
    """A matrix as the blocks will have it, on the device; None where they are not packed. form: of resident blocks."""
    weight = (form if plan.resident else streamed_form(form, device)).read(reader, SAMPLE_WEIGHT, device)
    return weight if isinstance(weight, PackedWeight) else None


def measure_rates(
    params: FluxParams, device: torch.device, dtype: torch.dtype, packed: PackedWeight | None = None
) -> Rates:
    """The best of a few runs of one Linear, one attention and one copy, of the model's own shapes, and one unpacking.

    packed: a sample of the blocks' matrices; None where they are not packed.
    """
    x = torch.randn(SAMPLE_TOKENS, params.hidden_size, device=device, dtype=dtype)
    weight = torch.randn(params.mlp_hidden, params.hidden_size, device=device, dtype=dtype)
    q = torch.randn(1, params.num_heads, SAMPLE_TOKENS, params.head_dim, device=device, dtype=dtype)
    host = torch.ones(COPY_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    slot = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    linear_s = _seconds(lambda: F.linear(x, weight), device)
    attention_s = _seconds(lambda: F.scaled_dot_product_attention(q, q, q), device)
    copy_s = _seconds(lambda: slot.copy_(host, non_blocking=True), device)
    unpack_s = _seconds(lambda: unpack_to_scratch(packed, dtype), device) if packed is not None else 0.0
    return Rates(
        linear=2 * SAMPLE_TOKENS * weight.numel() / linear_s,
        attention=4 * SAMPLE_TOKENS**2 * params.hidden_size / attention_s,
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


def step_seconds(params: FluxParams, plan: Plan, rates: Rates) -> float:
    """The expected time of one step of the planned work."""
    compute = linear_flops(params, plan.work) / rates.linear + attention_flops(params, plan.work) / rates.attention
    compute += matrix_values(params) / rates.unpack
    copying = plan.streamed_bytes / rates.copy
    return max(compute, copying) if rates.copies_hide else compute + copying


def matrix_values(params: FluxParams) -> int:
    """Of all Linears in the blocks; a double block has one set for each of its two streams."""
    return _stream_values(params) * (2 * params.depth + params.depth_single_blocks)


def linear_flops(params: FluxParams, work: Work) -> float:
    """Of all Linears in the blocks for one step; a double block's two streams share its tokens between them."""
    return 2.0 * work.batch * work.tokens * _stream_values(params) * (params.depth + params.depth_single_blocks)


def _stream_values(params: FluxParams) -> int:
    """qkv, proj and the MLP: of one stream, or of a single block."""
    return 4 * params.hidden_size**2 + 2 * params.hidden_size * params.mlp_hidden


def attention_flops(params: FluxParams, work: Work) -> float:
    """Scores and their sum over values, in all blocks."""
    blocks = params.depth + params.depth_single_blocks
    return 4.0 * work.batch * work.tokens**2 * params.hidden_size * blocks
