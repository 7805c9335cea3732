"""The parts of the bench, over models that are drawn when a part first needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from gpu_bench import diffusers_peer, figures, models, parity
from gpu_bench.models import Subject, latents
from gpu_bench.report import Report, seconds
from torch import Tensor

from fluxserve.models.flux1.sizes import SIZES
from fluxserve.pipeline.networks import compile_blocks
from fluxserve.pipeline.pipeline import FluxPipeline
from fluxserve.placement.place import blocks_of
from fluxserve.placement.plan import GIB
from fluxserve.tensors.quantize import QuantMode

BUDGETS_GIB, KLEIN_BUDGETS_GIB = (4, 8, 16), (4, 6)
COPY_BYTES = 450_000_000


class Parts:
    """scratch: a folder for tokenizers. side: of the pictures, in pixels."""

    def __init__(self, report: Report, size: str, side: int, scratch: Path) -> None:
        self.report = report
        self.device = report.device
        self._size = size
        self._side = side
        self._scratch = scratch
        self._latents: dict[str, Tensor] = {}

    @cached_property
    def schnell(self) -> Subject:
        return models.flux1(self._size, self.device, self._scratch / "flux1", self._side)

    @cached_property
    def klein_4b(self) -> Subject:
        return models.flux2(self._size, self.device, self._scratch / "flux2", self._side)

    def parity(self) -> None:
        """Small models: float32 beside the CPU, then bfloat16 in different ways on the device."""
        measure, device = self.report.measure, self.device
        measure("packing", lambda: parity.packs_as_the_cpu(device))
        measure("demo beside the CPU", lambda: parity.demo_as_on_cpu(device))
        for name, make in (("schnell", models.flux1), ("klein", models.flux2)):
            tiny = make("tiny", device, self._scratch / f"{name} tiny", 256, torch.float32)
            slim = make("tiny" if self._size == "tiny" else "slim", device, self._scratch / f"{name} slim", 256)
            measure(f"{name} beside the CPU", lambda tiny=tiny: parity.as_on_cpu(tiny))
            measure(f"{name} together", lambda slim=slim: parity.together_as_alone(slim))
            measure(f"{name} streamed", lambda slim=slim: parity.streamed_as_resident(slim))
        measure("klein placed anew", lambda: parity.smaller_plan_goes_on(slim))

    def resident(self) -> None:
        """Everything on the device."""
        self.report.measure("schnell", lambda: self._resident(self.schnell))
        if diffusers_peer.is_installed() and self.device.type == "cuda":
            self.report.measure("diffusers", lambda: self._diffusers(streamed=False))

    def offload(self) -> None:
        """Within budgets, which the allocator enforces."""
        self.report.measure("copies", self._copy_rates)
        for gib in BUDGETS_GIB:
            self.report.measure(f"schnell {gib} GiB", lambda gib=gib: self._budget(self.schnell, gib))
        if diffusers_peer.is_installed() and self.device.type == "cuda":
            self.report.measure("diffusers", lambda: self._diffusers(streamed=True))

    def klein(self) -> None:
        """FLUX.2 [klein] 4B, resident and within budgets."""
        self.report.measure("klein", lambda: self._resident(self.klein_4b))
        for gib in KLEIN_BUDGETS_GIB:
            self.report.measure(f"klein {gib} GiB", lambda gib=gib: self._budget(self.klein_4b, gib))

    def eightbit(self) -> None:
        """Products of the blocks in 8 bits, resident, within the least budget, and compiled."""
        modes: tuple[QuantMode, ...] = ("fp8", "int8")
        for mode in modes:
            self.report.measure(f"klein {mode}", lambda mode=mode: self._resident(self.klein_4b, mode))
            self.report.measure(f"klein {mode} 4 GiB", lambda mode=mode: self._budget(self.klein_4b, 4, mode))
            self.report.measure(f"klein {mode} compiled", lambda mode=mode: self._compiled(self.klein_4b, mode))

    def compile(self) -> None:
        """Each block compiled by itself."""
        for name, subject in (("klein", self.klein_4b), ("schnell", self.schnell)):
            self.report.measure(name, lambda subject=subject: self._compiled(subject))

    def _resident(self, subject: Subject, compute: QuantMode | None = None) -> dict[str, Any]:
        pipeline = subject.load(compute=compute)
        told = figures.of_pipeline(subject, pipeline)
        told["difference"] = self._difference(subject, pipeline, exact=compute is None)
        if self.device.type == "cuda":
            layout = subject.checkpoint.denoiser.layout
            assert layout is not None
            told["idle_ms"] = figures.idle_ms(subject, pipeline, layout)
            told["profile"] = figures.kernels(subject, pipeline)
        return told

    def _budget(self, subject: Subject, gib: float, compute: QuantMode | None = None) -> dict[str, Any]:
        with self._limit(gib):
            pipeline = subject.load(gib, compute=compute)
            told = figures.of_pipeline(subject, pipeline, pictures=2)
            told["copied_gb_s"] = round(pipeline.plan.streamed_bytes / 1e9 / told["step_s"], 2)
            told["difference"] = self._difference(subject, pipeline, exact=False)
            return told

    def _compiled(self, subject: Subject, compute: QuantMode | None = None) -> dict[str, Any]:
        torch.compiler.reset()
        pipeline = subject.load(compute=compute)
        layout = subject.checkpoint.denoiser.layout
        assert layout is not None
        eager_s = figures.step_s(subject, pipeline, 1)
        reference = latents(subject, pipeline)
        compile_blocks(blocks_of(pipeline.networks.model.denoiser, layout))
        first_s = seconds(self.device, lambda: figures.step_s(subject, pipeline, 1, repeats=1), repeats=1, warm_ups=0)
        told = {"first_s": first_s, "eager_step_s": eager_s, "step_s": figures.step_s(subject, pipeline, 1)}
        told["of_eager"] = round(told["step_s"] / eager_s, 3)
        told["image_s"] = figures.picture_s(subject, pipeline, 2)
        return told | {"difference": figures.difference(latents(subject, pipeline), reference)}

    def _difference(self, subject: Subject, pipeline: FluxPipeline, *, exact: bool) -> float:
        """From the resident pipeline, which comes first. exact: this is it."""
        drawn = latents(subject, pipeline)
        if exact:
            self._latents[subject.checkpoint.id] = drawn
        reference = self._latents.get(subject.checkpoint.id)
        return float("nan") if reference is None else figures.difference(drawn, reference)

    def _copy_rates(self) -> dict[str, float]:
        """Gigabytes a second of plain copies to the device, pinned and pageable."""
        slot = torch.empty(COPY_BYTES, dtype=torch.uint8, device=self.device)
        rates = {}
        for name, pinned in (("pinned", True), ("pageable", False)):
            host = torch.ones(COPY_BYTES, dtype=torch.uint8, pin_memory=pinned and self.device.type == "cuda")
            copying = seconds(self.device, lambda host=host: slot.copy_(host, non_blocking=True))
            rates[f"{name}_gb_s"] = round(COPY_BYTES / copying / 1e9, 2)
        return rates

    def _diffusers(self, *, streamed: bool) -> dict[str, Any]:
        return diffusers_peer.step_s(SIZES[self._size].transformer, self.device, self._side, streamed=streamed)

    @contextmanager
    def _limit(self, gib: float) -> Iterator[None]:
        if self.device.type != "cuda":
            yield
            return
        total = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
