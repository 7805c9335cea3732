"""The same transformer by diffusers, where it is installed: one step resident, and streamed leaf by leaf."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from gpu_bench.report import seconds

from fluxserve.models.flux1.sizes import FluxParams

TEXT_TOKENS = 256


def is_installed() -> bool:
    return importlib.util.find_spec("diffusers") is not None


def step_s(sizes: FluxParams, device: torch.device, side: int, *, streamed: bool) -> dict[str, Any]:
    """One step of one picture. streamed: from pinned memory by `enable_group_offload`, on a stream of its own."""
    transformer = _transformer(sizes, device)
    if streamed:
        transformer.to("cpu")
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        transformer.enable_group_offload(
            onload_device=device, offload_device=torch.device("cpu"), offload_type="leaf_level", use_stream=True
        )
    inputs = _inputs(sizes, device, side)
    with torch.inference_mode():
        step = seconds(device, lambda: transformer(**inputs, return_dict=False), repeats=3 if streamed else 5)
    return {"step_s": step, "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2)}


def _transformer(sizes: FluxParams, device: torch.device) -> Any:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        transformer = FluxTransformer2DModel(
            in_channels=sizes.in_channels,
            num_layers=sizes.depth,
            num_single_layers=sizes.depth_single_blocks,
            attention_head_dim=sizes.head_dim,
            num_attention_heads=sizes.num_heads,
            joint_attention_dim=sizes.context_in_dim,
            pooled_projection_dim=sizes.vec_in_dim,
            guidance_embeds=sizes.guidance_embed,
            axes_dims_rope=sizes.axes_dim,
        ).to(torch.bfloat16)
    transformer = transformer.to_empty(device=device).eval().requires_grad_(False)
    for parameter in transformer.parameters():
        parameter.normal_(std=0.02)
    return transformer


def _inputs(sizes: FluxParams, device: torch.device, side: int) -> dict[str, torch.Tensor]:
    rows = side // 16
    ids = torch.zeros(rows, rows, 3)
    ids[..., 1], ids[..., 2] = torch.arange(rows)[:, None], torch.arange(rows)
    random = {
        "hidden_states": torch.randn(1, rows * rows, sizes.in_channels),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, sizes.context_in_dim),
        "pooled_projections": torch.randn(1, sizes.vec_in_dim),
    }
    inputs = {name: tensor.to(device, torch.bfloat16) for name, tensor in random.items()}
    return inputs | {
        "timestep": torch.tensor([0.5], device=device, dtype=torch.bfloat16),
        "img_ids": ids.reshape(-1, 3).to(device, torch.bfloat16),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3, device=device, dtype=torch.bfloat16),
    }
