"""Models of random weights on one device: drawn there once, kept on the host, placed again and again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fluxserve.completion import complete_request
from fluxserve.models.companions.toy_qwen import write_qwen_tokenizer
from fluxserve.models.family import Architecture, Family
from fluxserve.models.flux1 import sizes as flux1_sizes
from fluxserve.models.flux1 import variants as flux1_variants
from fluxserve.models.flux1.family import FLUX1_FAMILY, Flux1Architecture
from fluxserve.models.flux1.toy_tokenizers import write_clip_tokenizer, write_t5_tokenizer
from fluxserve.models.flux2 import sizes as flux2_sizes
from fluxserve.models.flux2 import variants as flux2_variants
from fluxserve.models.flux2.family import FLUX2_FAMILY, Flux2Architecture
from fluxserve.models.variant import Variant
from fluxserve.pipeline.networks import Blueprint
from fluxserve.pipeline.pipeline import FluxPipeline
from fluxserve.placement.plan import GIB
from fluxserve.request import GenerationRequest
from fluxserve.tensors.packed import PackedWeight
from fluxserve.tensors.quantize import QuantMode
from fluxserve.tensors.reader import Shapes
from fluxserve.weights.checkpoint import Checkpoint

PROMPT = "A vibrant sunset in the mountains, 4k, high quality."


class RandomReader:
    """A network's tensors, drawn on the device when first read and kept on the host."""

    source = "random weights"
    files = ()

    def __init__(self, shapes: Shapes, device: torch.device, dtype: torch.dtype) -> None:
        self._shapes = shapes
        self._device = device
        self._dtype = dtype
        self._tensors: dict[str, Tensor] = {}

    def keys(self) -> Collection[str]:
        return self._shapes.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._shapes[key]

    def dtype(self, key: str) -> torch.dtype:
        return self._dtype

    def read(self, key: str) -> Tensor:
        if key not in self._tensors:
            self._tensors[key] = self._draw(key).cpu()
        return self._tensors[key]

    def _draw(self, key: str) -> Tensor:
        """Never zeros: a GPU clocks higher on them. Scaled so that activations stay near 1."""
        shape = self._shapes[key]
        if len(shape) == 1:
            value = 0.0 if key.endswith(("bias", "running_mean")) else 1.0
            return torch.full(shape, value, dtype=self._dtype, device=self._device)
        fan_in = torch.Size(shape[1:]).numel()
        return torch.randn(shape, dtype=self._dtype, device=self._device).mul_(fan_in**-0.5)

    def packed(self, key: str) -> PackedWeight | None:
        return None

    def packed_meta(self, key: str) -> PackedWeight | None:
        return None

    def release(self, key: str) -> None:
        """It stays: it will be read again for the next plan."""


@dataclass(frozen=True)
class Subject:
    """One model of random weights."""

    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype
    side: int

    @property
    def blueprint(self) -> Blueprint:
        return Blueprint(self.checkpoint, self.device, self.dtype, "fixed", quant=None, compile=False)

    def load(
        self, budget_gib: float | None = None, *, streamed: bool = False, compute: QuantMode | None = None
    ) -> FluxPipeline:
        """Everything resident, or what the budget allows, or every block streamed. compute: the blocks' arithmetic."""
        blueprint = replace(self.blueprint, product=compute)
        offload = "stream" if streamed else "none" if budget_gib is None else "auto"
        plan = blueprint.plan(offload, None if budget_gib is None else int(budget_gib * GIB))
        return FluxPipeline(blueprint, blueprint.build(plan, lambda *_: None))

    def request(self, pipeline: FluxPipeline, n: int = 1, prompt: str = PROMPT) -> GenerationRequest:
        return complete_request(pipeline.card, prompt, n=n, width=self.side, height=self.side, seed=0)

    def on(self, device: torch.device) -> Subject:
        """The same weights on another device."""
        return replace(self, device=device)


def latents(subject: Subject, pipeline: FluxPipeline, n: int = 1, *, together: bool = True) -> Tensor:
    """(n, I, F) float32 on the host: what is decoded. together: stepped as one batch."""
    samples = pipeline.begin(subject.request(pipeline, n))
    batches = [samples] if together else [[sample] for sample in samples]
    for batch in batches:
        while not batch[0].done:
            pipeline.step(batch)
    return torch.stack([sample.latents.float().cpu() for sample in samples])


def flux1(size: str, device: torch.device, scratch: Path, side: int, dtype: torch.dtype = torch.bfloat16) -> Subject:
    """FLUX.1 [schnell]."""
    if not scratch.exists():
        write_clip_tokenizer(scratch / "tokenizer")
        write_t5_tokenizer(scratch / "tokenizer_2")
    architecture = Flux1Architecture(flux1_sizes.SIZES[size])
    return _subject(FLUX1_FAMILY, architecture, flux1_variants.VARIANTS["schnell"], device, scratch, side, dtype)


def flux2(size: str, device: torch.device, scratch: Path, side: int, dtype: torch.dtype = torch.bfloat16) -> Subject:
    """FLUX.2 [klein]."""
    if not scratch.exists():
        write_qwen_tokenizer(scratch / "tokenizer")
    architecture = Flux2Architecture(flux2_sizes.SIZES[size])
    return _subject(FLUX2_FAMILY, architecture, flux2_variants.VARIANTS["klein"], device, scratch, side, dtype)


def _subject(
    family: Family,
    architecture: Architecture,
    variant: Variant,
    device: torch.device,
    scratch: Path,
    side: int,
    dtype: torch.dtype,
) -> Subject:
    shapes: Mapping[str, Shapes] = architecture.shapes()
    checkpoint = Checkpoint(
        id=f"random {variant.name}",
        family=family,
        variant=variant,
        architecture=architecture,
        readers={part: RandomReader(tensors, device, dtype) for part, tensors in shapes.items()},
        tokenizers={name: scratch / name for name in family.tokenizers},
    )
    return Subject(checkpoint, device, dtype, side)
