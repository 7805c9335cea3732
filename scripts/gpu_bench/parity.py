"""Whether the GPU draws what it should: as the CPU does, however weights reach it, alone or together."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gpu_bench.figures import difference
from gpu_bench.models import PROMPT, Subject, latents
from PIL import Image
from torch import Tensor, nn

from fluxserve import FluxPipeline
from fluxserve.completion import complete_request
from fluxserve.input_images import read_inputs
from fluxserve.placement import copiers
from fluxserve.placement.place import blocks_of
from fluxserve.placement.stream import BlockSource
from fluxserve.tensors.quantize import QuantMode, quantize

LATE_CYCLES, LATE_S = 2_000_000, 0.001
"""Of the GPU's clock; of a CPU's time: longer than a copy or a block of a slim model takes."""
FLOAT32_TOLERANCE, BFLOAT16_TOLERANCE = 1e-3, 5e-2
"""Largest difference over the spread, of latents after all steps."""
PIXEL_TOLERANCE = 3


def as_on_cpu(subject: Subject) -> dict[str, Any]:
    """A float32 model's latents, decoded pixels and an edit, on the device and on the CPU."""
    drawn = []
    for device in (subject.device, torch.device("cpu")):
        here = replace(subject, device=device, dtype=torch.float32)
        pipeline = here.load()
        picture = pipeline.run(here.request(pipeline))[0].data
        edit = complete_request(
            pipeline.card, PROMPT, inputs=_half_open(picture), width=here.side, height=here.side, seed=3
        )
        drawn.append((latents(here, pipeline), _pixels(picture), _pixels(pipeline.run(edit)[0].data)))
    (a, picture_a, edit_a), (b, picture_b, edit_b) = drawn
    figures = {
        "latents": difference(a, b),
        "pixels_of_255": int(np.abs(picture_a - picture_b).max()),
        "edit_of_255": int(np.abs(edit_a - edit_b).max()),
    }
    assert figures["latents"] <= FLOAT32_TOLERANCE, figures
    assert max(figures["pixels_of_255"], figures["edit_of_255"]) <= PIXEL_TOLERANCE, figures
    return figures


def _half_open(picture: bytes) -> Any:
    """An edit's inputs: the picture, and a mask of its left half."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    mask = Image.new("RGBA", image.size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, image.width // 2, image.height))
    return read_inputs(image, mask)


def _pixels(picture: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def streamed_as_resident(subject: Subject) -> dict[str, Any]:
    """Equal to the bit, also where copies or computing come late; no byte is copied twice in a step."""
    reference = latents(subject, subject.load())
    pipeline = subject.load(streamed=True)
    figures: dict[str, Any] = {"plain": difference(latents(subject, pipeline), reference)}
    with _before_each_copy(subject.device, _late_copy):
        figures["late_copies"] = difference(latents(subject, pipeline), reference)
    layout = subject.checkpoint.denoiser.layout
    assert layout is not None
    with _late_computing(subject.device, blocks_of(pipeline.networks.model.denoiser, layout)):
        figures["late_computing"] = difference(latents(subject, pipeline), reference)
    figures["copied_of_planned"] = _copied(subject, pipeline)
    assert not any(figures[name] for name in ("plain", "late_copies", "late_computing")), figures
    assert figures["copied_of_planned"] <= 1, figures
    return figures


def _copied(subject: Subject, pipeline: FluxPipeline) -> float:
    """Bytes copied in one step over those of the plan."""
    (sample,) = pipeline.begin(subject.request(pipeline))
    pipeline.step([sample])
    copied: list[int] = []
    with _before_each_copy(subject.device, lambda _, source: copied.append(source.layout.nbytes)):
        pipeline.step([sample])
    return sum(copied) / pipeline.plan.streamed_bytes


def _copier_of(device: torch.device) -> type[copiers.CudaCopier] | type[copiers.ThreadCopier]:
    return copiers.CudaCopier if device.type == "cuda" else copiers.ThreadCopier


@contextmanager
def _before_each_copy(device: torch.device, action: Callable[[Any, BlockSource], None]) -> Iterator[None]:
    """action: called with the copier and what it is about to copy."""
    copier = _copier_of(device)
    plain = copier.copy

    def copy(self: Any, source: BlockSource, slot: int, buffer: Tensor) -> None:
        action(self, source)
        plain(self, source, slot, buffer)

    copier.copy = copy  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        copier.copy = plain  # type: ignore[method-assign]


def _late_copy(copier: Any, _: BlockSource) -> None:
    """Where it copies, something else comes first."""
    if isinstance(copier, copiers.CudaCopier):
        with torch.cuda.stream(copier._stream):
            torch.cuda._sleep(LATE_CYCLES)
    else:
        copier._thread.submit(time.sleep, LATE_S)


def _late_computing(device: torch.device, blocks: Sequence[nn.Module]) -> ExitStack:
    """Every block begins late where it is computed."""

    def late(*_: object) -> None:
        torch.cuda._sleep(LATE_CYCLES) if device.type == "cuda" else time.sleep(LATE_S)

    stack = ExitStack()
    for block in blocks:
        stack.callback(block.register_forward_pre_hook(late).remove)
    return stack


def together_as_alone(subject: Subject) -> dict[str, Any]:
    """Two samples stepped in one batch, and each by itself."""
    pipeline = subject.load()
    alone = latents(subject, pipeline, 2, together=False)
    figures = {"latents": difference(latents(subject, pipeline, 2), alone)}
    assert figures["latents"] <= BFLOAT16_TOLERANCE, figures
    return figures


def smaller_plan_goes_on(subject: Subject) -> dict[str, Any]:
    """A sample under way is finished after `replan`, as if nothing had been."""
    pipeline = subject.load()
    reference = latents(subject, pipeline)
    (sample,) = pipeline.begin(subject.request(pipeline))
    pipeline.step([sample])
    peak = pipeline.plan.peak_bytes
    pipeline.replan()
    while not sample.done:
        pipeline.step([sample])
    figures = {
        "latents": difference(sample.latents.float().cpu()[None], reference),
        "peak_of_before": round(pipeline.plan.peak_bytes / peak, 3),
    }
    assert not figures["latents"], figures
    return figures


def packs_as_the_cpu(device: torch.device) -> dict[str, Any]:
    """Packing and unpacking at load on the device give the CPU's bytes and numbers."""
    weight = torch.randn(512, 3072, dtype=torch.bfloat16)
    figures: dict[str, Any] = {}
    modes: tuple[QuantMode, ...] = ("fp8", "int8")
    for mode in modes:
        here, there = quantize(weight, mode), quantize(weight.to(device), mode)
        figures[f"{mode}_bytes_that_differ"] = int((here.parts["data"] != there.parts["data"].cpu()).sum())
        numbers = there.to(torch.device("cpu")).unpack(torch.bfloat16)
        figures[f"{mode}_unpacked"] = float((there.unpack(torch.bfloat16).cpu() - numbers).abs().max())
    assert not any(figures.values()), figures
    return figures


def demo_as_on_cpu(device: torch.device) -> dict[str, Any]:
    """The trained demo: its pictures on the device beside the CPU's, in decibels."""
    figures = {}
    drawn: dict[str, list[np.ndarray[Any, Any]]] = {}
    for name in (str(device), "cpu"):
        pipeline = FluxPipeline.from_pretrained("demo", device=name, dtype="float32")
        drawn[name] = [_pixels(pipeline.generate("a red apple", seed=seed)[0].data) for seed in (1, 2)]
    error = np.mean((np.stack(drawn[str(device)]) - np.stack(drawn["cpu"])) ** 2)
    figures["psnr_db"] = round(float(10 * np.log10(255**2 / max(error, 1e-9))), 1)
    assert figures["psnr_db"] >= 40, figures
    return figures
