"""What clients and the front may know of a loaded model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from fluxserve.models.family import Sight
from fluxserve.models.variant import Variant
from fluxserve.placement.device import largest_batch
from fluxserve.placement.plan import Plan
from fluxserve.placement.rates import measure_rates, packed_anew, packed_sample, step_seconds
from fluxserve.placement.weight_format import WeightFormat
from fluxserve.request import ModelCard, Placement, Solver
from fluxserve.sizes import MAX_INPUT_IMAGES, References
from fluxserve.weights.checkpoint import Checkpoint

MAX_REDUX_IMAGES = 8


def model_card(
    checkpoint: Checkpoint,
    plan: Plan,
    device: torch.device,
    fmt: WeightFormat,
    loras: Iterable[str] = (),
    solver: Solver = "euler",
) -> ModelCard:
    """What clients and the front may know of the model. fmt: of its blocks. loras: the names that requests may use.

    solver: of requests that do not say.
    """
    variant = checkpoint.variant
    return ModelCard(
        id=checkpoint.id,
        device=str(device),
        dtype=dtype_name(fmt.dtype),
        max_pixels=None if variant.resamples else plan.max_pixels,
        max_batch=min(largest_batch(device), plan.samples_together(plan.work.width, plan.work.height)),
        placement=placement_of(checkpoint, plan, device, fmt),
        loras=tuple(loras),
        solver=solver,
        references=readable(variant.references, plan),
        redux=_seen(checkpoint.architecture.sight) if variant.picture == "start" else None,
        **_told_by(variant),
    )


def _told_by(variant: Variant) -> dict[str, Any]:
    """What the variant alone tells, wherever the model lies."""
    return {
        "aliases": variant.aliases,
        "variant": variant.name,
        "steps": dict(variant.steps),
        "max_sequence_length": variant.max_sequence_length,
        "guidance_scale": variant.guidance_scale,
        "guidance_max": variant.guidance_max,
        "true_cfg_scale": variant.true_cfg_scale,
        "native_area": variant.native_area,
        "resamples": variant.resamples,
        "default_width": variant.default_size[0],
        "default_height": variant.default_size[1],
        "licence": variant.licence,
        "description": variant.description,
        "notice": variant.notice,
        "picture": variant.picture,
        "controls": variant.controls,
    }


def _seen(sight: Sight | None) -> References | None:
    """How an image encoder sees pictures: as squares, whatever their proportions."""
    if sight is None:
        return None
    side = sight.side
    return References(MAX_REDUX_IMAGES, MAX_INPUT_IMAGES, side * side, ((side, side),), "bicubic")


def readable(references: References | None, plan: Plan) -> References | None:
    """What of them there is room for: those of no set sizes are read smaller, so that one is drawn by one like it."""
    if references is None or references.sizes:
        return references
    most = plan.max_pixels // 2
    whole = None if references.whole_area is None else min(references.whole_area, most)
    return replace(references, area=min(references.area, most), whole_area=whole)


def placement_of(checkpoint: Checkpoint, plan: Plan, device: torch.device, fmt: WeightFormat) -> Placement:
    """The plan in the words of both processes, with the step time expected on this machine."""
    costs, denoiser = checkpoint.architecture.arithmetic, checkpoint.denoiser
    assert denoiser.layout is not None
    drawn_by_none = replace(plan, work=replace(plan.work, reference_tokens=0))
    blocks = (checkpoint.readers[denoiser.name], denoiser.layout, plan, fmt, device)
    rates = measure_rates(costs, device, fmt.dtype, packed_sample(*blocks), packed_anew(*blocks))
    return Placement(
        budget_bytes=plan.budget_bytes,
        peak_bytes=plan.peak_bytes,
        resident_blocks=len(plan.resident),
        streamed_blocks=len(plan.streamed),
        streamed_bytes=plan.streamed_bytes,
        text_encoder=plan.text_encoder,
        autoencoder="tiled" if plan.tiled else "whole",
        step_s=step_seconds(costs, drawn_by_none, rates),
        compute=fmt.product or "exact",
    )


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
