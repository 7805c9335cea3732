"""How fast this machine computes and copies, measured in a moment, and what a step should therefore take.

Knows no weights but one to copy: the arithmetic of a step is counted from sizes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fluxserve.flux.params import FluxParams
from fluxserve.placement.plan import Plan, Work

REPEATS = 3
SAMPLE_TOKENS = 512
COPY_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Rates:
    """linear, attention: floating-point operations a second. copy: bytes a second into a slot."""

    linear: float
    attention: float
    copy: float


def measure_rates(params: FluxParams, device: torch.device, dtype: torch.dtype) -> Rates:
    """The best of a few runs of one Linear, one attention and one copy, of the model's own shapes."""
    x = torch.randn(SAMPLE_TOKENS, params.hidden_size, device=device, dtype=dtype)
    weight = torch.randn(params.mlp_hidden, params.hidden_size, device=device, dtype=dtype)
    q = torch.randn(1, params.num_heads, SAMPLE_TOKENS, params.head_dim, device=device, dtype=dtype)
    host = torch.ones(COPY_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    slot = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    linear_s = _seconds(lambda: F.linear(x, weight), device)
    attention_s = _seconds(lambda: F.scaled_dot_product_attention(q, q, q), device)
    copy_s = _seconds(lambda: slot.copy_(host, non_blocking=True), device)
    return Rates(
        linear=2 * SAMPLE_TOKENS * weight.numel() / linear_s,
        attention=4 * SAMPLE_TOKENS**2 * params.hidden_size / attention_s,
        copy=COPY_BYTES / copy_s,
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
    """The expected time of one step of the planned work: copies hide behind computing, or the other way round."""
    compute = linear_flops(params, plan.work) / rates.linear + attention_flops(params, plan.work) / rates.attention
    return max(compute, plan.streamed_bytes / rates.copy)


def linear_flops(params: FluxParams, work: Work) -> float:
    """Of all Linears in the blocks for one step; a double block's two streams share its tokens between them."""
    hidden, mlp = params.hidden_size, params.mlp_hidden
    stream = 4 * hidden * hidden + 2 * hidden * mlp  # qkv, proj and the MLP: of one stream, or of a single block
    return 2.0 * work.batch * work.tokens * stream * (params.depth + params.depth_single_blocks)


def attention_flops(params: FluxParams, work: Work) -> float:
    """Scores and their sum over values, in all blocks."""
    blocks = params.depth + params.depth_single_blocks
    return 4.0 * work.batch * work.tokens**2 * params.hidden_size * blocks
