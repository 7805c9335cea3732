"""What clients and the front may know of a loaded model. Knows no weights and no requests."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fluxserve.placement.device import largest_batch
from fluxserve.placement.plan import Plan
from fluxserve.placement.rates import measure_rates, packed_sample, step_seconds
from fluxserve.placement.weight_format import Form
from fluxserve.request import ModelCard, Placement
from fluxserve.weights.checkpoint import Checkpoint


def model_card(
    checkpoint: Checkpoint, plan: Plan, device: torch.device, form: Form, loras: Iterable[str] = ()
) -> ModelCard:
    """What clients and the front may know of the model. form: of its blocks. loras: the names that requests may use."""
    variant = checkpoint.variant
    return ModelCard(
        id=checkpoint.id,
        aliases=variant.aliases,
        variant=variant.name,
        steps=variant.steps,
        max_sequence_length=variant.max_sequence_length,
        guidance_scale=variant.guidance_scale,
        guidance_max=variant.guidance_max,
        native_area=variant.native_area,
        resamples=variant.resamples,
        default_width=variant.default_size[0],
        default_height=variant.default_size[1],
        licence=variant.licence,
        description=variant.description,
        notice=variant.notice,
        device=str(device),
        dtype=dtype_name(form.dtype),
        max_pixels=None if variant.resamples else plan.max_pixels,
        max_batch=min(largest_batch(device), plan.samples_together(plan.work.width, plan.work.height)),
        placement=placement_of(checkpoint, plan, device, form),
        loras=tuple(loras),
    )


def placement_of(checkpoint: Checkpoint, plan: Plan, device: torch.device, form: Form) -> Placement:
    """The plan in the words of both processes, with the step time expected on this machine."""
    params = checkpoint.transformer_params
    sample = packed_sample(checkpoint.transformer, plan, form, device)
    return Placement(
        budget_bytes=plan.budget_bytes,
        peak_bytes=plan.peak_bytes,
        resident_blocks=len(plan.resident),
        streamed_blocks=len(plan.streamed),
        streamed_bytes=plan.streamed_bytes,
        text_encoder=plan.t5,
        autoencoder="tiled" if plan.tiled else "whole",
        step_s=step_seconds(params, plan, measure_rates(params, device, form.dtype, sample)),
    )


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
