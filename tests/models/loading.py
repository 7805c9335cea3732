"""Loading tiny models and drawing with them."""

from __future__ import annotations

from pathlib import Path

import torch

from fluxserve import FluxPipeline
from fluxserve.completion import complete_request


def load(model: Path, **options: object) -> FluxPipeline:
    return FluxPipeline.from_pretrained(str(model), device="cpu", dtype="float32", **options)  # type: ignore[arg-type]


def latents(pipeline: FluxPipeline, prompt: str = "a cat", **options: object) -> torch.Tensor:
    given = {"width": 96, "height": 64, "seed": 5, "num_inference_steps": 4} | options
    (sample,) = pipeline.begin(complete_request(pipeline.card, prompt, **given))  # type: ignore[arg-type]
    while not sample.done:
        pipeline.step([sample])
    return sample.latents


def error(some: torch.Tensor, others: torch.Tensor) -> float:
    """Of final latents, relative to their spread."""
    return float((some - others).square().mean().sqrt() / others.std())
