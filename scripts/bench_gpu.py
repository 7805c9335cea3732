"""Times full-size FLUX.1 [schnell] of random weights on one GPU, in under ten minutes, against the goals G1 to G6.

Needs torch, transformers, safetensors, numpy and Pillow alone, and no network: `python scripts/bench_gpu.py`. Weights
are drawn on the GPU and kept in host memory (about 34 GB). Each part is timed in a box of its own and skipped when
time runs short; the JSON is written after each part, and a short table comes last.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fluxserve.completion import complete_request
from fluxserve.models.flux1.family import FLUX1_FAMILY, TRANSFORMER, Flux1Architecture
from fluxserve.models.flux1.sizes import SIZES, ModelSizes
from fluxserve.models.flux1.toy_tokenizers import write_clip_tokenizer, write_t5_tokenizer
from fluxserve.models.flux1.variants import VARIANTS
from fluxserve.pipeline.networks import Blueprint, compile_blocks
from fluxserve.pipeline.pipeline import FluxPipeline
from fluxserve.placement.place import blocks_of
from fluxserve.placement.plan import GIB
from fluxserve.request import GenerationRequest
from fluxserve.tensors.packed import PackedWeight
from fluxserve.tensors.reader import Shapes
from fluxserve.weights.checkpoint import Checkpoint

TIME_BOX_S = 480
REPEATS = 5
BUDGETS_GIB = (4, 8, 12, 16)
SEED_PROMPT = "A vibrant sunset in the mountains, 4k, high quality."


class RandomReader:
    """A network's tensors, drawn on the device when first read and kept on the host in bfloat16."""

    source = "random weights"
    files = ()

    def __init__(self, shapes: Shapes, device: torch.device) -> None:
        self._shapes = shapes
        self._device = device
        self._tensors: dict[str, Tensor] = {}

    def keys(self) -> Collection[str]:
        return self._shapes.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._shapes[key]

    def dtype(self, key: str) -> torch.dtype:
        return torch.bfloat16

    def read(self, key: str) -> Tensor:
        if key not in self._tensors:
            self._tensors[key] = self._draw(key).cpu()
        return self._tensors[key]

    def _draw(self, key: str) -> Tensor:
        """Never zeros: a GPU clocks higher on them. Scaled so that activations stay near 1."""
        shape = self._shapes[key]
        if len(shape) == 1:
            return torch.full(shape, 0.0 if key.endswith("bias") else 1.0, dtype=torch.bfloat16, device=self._device)
        fan_in = torch.Size(shape[1:]).numel()
        return torch.randn(shape, dtype=torch.bfloat16, device=self._device).mul_(fan_in**-0.5)

    def packed(self, key: str) -> PackedWeight | None:
        return None

    def packed_meta(self, key: str) -> PackedWeight | None:
        return None

    def release(self, key: str) -> None:
        """It stays: it will be read again for the next plan."""


@dataclass
class Report:
    """What has been measured, written to a file after every part."""

    path: Path
    started: float = field(default_factory=time.monotonic)
    parts: dict[str, Any] = field(default_factory=dict)

    def part(self, name: str, measure: Callable[[], Any]) -> None:
        """Runs one part unless time is short; a part that fails is told of, and the others go on."""
        if time.monotonic() - self.started > TIME_BOX_S:
            self.parts[name] = "skipped: out of time"
        else:
            try:
                self.parts[name] = measure()
            except Exception as error:  # each part stands by itself, whatever goes wrong in it
                traceback.print_exc()
                self.parts[name] = f"failed: {type(error).__name__}: {error}"[:300]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.path.write_text(json.dumps(self.parts, indent=1))
        print(f"{time.monotonic() - self.started:6.1f} s  {name}: {self.parts[name]}", flush=True)


class Bench:
    """One model of random weights, placed again and again."""

    def __init__(self, sizes: ModelSizes, device: torch.device, tokenizers: Path, side: int) -> None:
        self.device = device
        self.side = side
        write_clip_tokenizer(tokenizers / "tokenizer")
        write_t5_tokenizer(tokenizers / "tokenizer_2")
        architecture = Flux1Architecture(sizes)
        self.checkpoint = Checkpoint(
            id="random",
            family=FLUX1_FAMILY,
            variant=VARIANTS["schnell"],
            architecture=architecture,
            readers={part: RandomReader(shapes, device) for part, shapes in architecture.shapes().items()},
            tokenizers={name: tokenizers / name for name in FLUX1_FAMILY.tokenizers},
        )
        self.blueprint = Blueprint(self.checkpoint, device, torch.bfloat16, "fixed", quant=None, compile=False)

    def load(self, budget_gib: float | None) -> FluxPipeline:
        """Everything resident, or what the budget allows."""
        budget = None if budget_gib is None else int(budget_gib * GIB)
        plan = self.blueprint.plan("none" if budget is None else "auto", budget)
        return FluxPipeline(self.blueprint, self.blueprint.build(plan, lambda *_: None))

    def request(self, pipeline: FluxPipeline, n: int = 1, prompt: str = SEED_PROMPT) -> GenerationRequest:
        return complete_request(pipeline.card, prompt, n=n, width=self.side, height=self.side, seed=0)

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, action: Callable[[], object], repeats: int = REPEATS) -> float:
        """Median of some runs after two that do not count."""
        for _ in range(min(2, repeats)):
            action()
        runs = []
        for _ in range(repeats):
            self.synchronise()
            started = time.perf_counter()
            action()
            self.synchronise()
            runs.append(time.perf_counter() - started)
        return round(statistics.median(runs), 4)

    def peak_gib(self) -> float | None:
        return round(torch.cuda.max_memory_reserved() / GIB, 2) if self.device.type == "cuda" else None

    def latents(self, pipeline: FluxPipeline, n: int = 1) -> Tensor:
        samples = pipeline.begin(self.request(pipeline, n))
        while not samples[0].done:
            pipeline.step(samples)
        return torch.stack([sample.latents.float().cpu() for sample in samples])

    # The parts

    def copy_rates(self) -> dict[str, float]:
        """Gigabytes a second of plain copies of 0.45 GB to the device, pinned and pageable."""
        size = 450_000_000
        slot = torch.empty(size, dtype=torch.uint8, device=self.device)
        rates = {}
        for name, pinned in (("pinned", True), ("pageable", False)):
            host = torch.ones(size, dtype=torch.uint8, pin_memory=pinned and self.device.type == "cuda")
            rates[name] = round(size / self.seconds(lambda h=host: slot.copy_(h, non_blocking=True)) / 1e9, 2)
        return rates

    def resident(self) -> dict[str, Any]:
        """G1 and G4: everything on the device, eager; then each block compiled."""
        pipeline = self.load(None)
        figures: dict[str, Any] = self._times(pipeline)
        self.reference = self.latents(pipeline, 2)
        compile_blocks(blocks_of(pipeline.networks.model.denoiser, TRANSFORMER.layout))
        figures["compiled_step_s"] = self._step_s(pipeline, 1)
        figures["compiled_difference"] = self._difference(self.latents(pipeline, 2))
        return figures

    def budget(self, gib: float) -> dict[str, Any]:
        """G2, G3 and G5: the same pictures within a budget, which the allocator enforces."""
        self._limit(gib)
        try:
            pipeline = self.load(gib)
            figures = self._times(pipeline)
            figures["step_of_2_s"] = self._step_s(pipeline, 2)
            figures["streamed_gb"] = round(pipeline.plan.streamed_bytes / 1e9, 2)
            figures["copied_gb_s"] = round(pipeline.plan.streamed_bytes / 1e9 / figures["step_s"], 2)
            figures["expected_step_s"] = round(pipeline.card.placement.step_s, 4) if pipeline.card.placement else None
            figures["difference"] = self._difference(self.latents(pipeline, 2))
            return figures
        finally:
            self._limit(None)

    def _times(self, pipeline: FluxPipeline) -> dict[str, Any]:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        prompts = (f"{SEED_PROMPT} {i}" for i in range(1000))
        return {
            "step_s": self._step_s(pipeline, 1),
            "image_s": self.seconds(lambda: pipeline.run(self.request(pipeline, prompt=next(prompts))), 3),
            "image_cached_prompt_s": self.seconds(lambda: pipeline.run(self.request(pipeline)), 3),
            "peak_reserved_gib": self.peak_gib(),
        }

    def _step_s(self, pipeline: FluxPipeline, n: int) -> float:
        samples = pipeline.begin(self.request(pipeline, n))
        latents = [sample.latents for sample in samples]

        def step() -> None:
            for sample, start in zip(samples, latents, strict=True):
                sample.step, sample.latents = 0, start
            pipeline.step(samples)

        return self.seconds(step)

    def _difference(self, latents: Tensor) -> float:
        """Largest difference from the resident run, over the latents' spread."""
        return round(float((latents - self.reference).abs().max() / self.reference.std()), 5)

    def _limit(self, gib: float | None) -> None:
        if self.device.type == "cuda":
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(1.0 if gib is None else min(1.0, gib * GIB / total))


def table(parts: dict[str, Any]) -> str:
    """The goals beside the figures, last in the output."""
    rows = [("part", "step s", "image s", "peak GiB", "streamed GB", "GB/s", "difference")]
    for name, part in parts.items():
        if isinstance(part, dict) and "step_s" in part:
            keys = ("step_s", "image_s", "peak_reserved_gib", "streamed_gb", "copied_gb_s", "difference")
            rows.append((name, *(str(part.get(key, "")) for key in keys)))
    lines = ["  ".join(f"{cell:>14}" for cell in row) for row in rows]
    resident = parts.get("resident")
    smallest = parts.get(f"budget {BUDGETS_GIB[0]} GiB")
    if isinstance(resident, dict) and isinstance(smallest, dict):
        ratio = smallest["step_of_2_s"] / smallest["step_s"]
        lines += [
            f"G1 resident image, at most 0.70 s: {resident['image_s']}",
            f"G2 image within {BUDGETS_GIB[0]} GiB, at most 2.0 s: {smallest['image_s']}",
            f"G4 resident memory reserved, at most 18.5 GB of transformer: {resident['peak_reserved_gib']} GiB in all",
            f"G5 two images in one pass over the weights, at most 1.30 times one eager: {ratio:.2f}",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--side", type=int, default=1024, help="pixels a side")
    parser.add_argument("--out", type=Path, default=Path("bench_gpu"), help="a folder for the JSON and scratch files")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    report = Report(arguments.out / "bench_gpu.json")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    report.parts["machine"] = {"device": name, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    bench = Bench(SIZES[arguments.size], device, arguments.out, arguments.side)
    report.part("copy rate", bench.copy_rates)
    report.part("resident", bench.resident)
    for gib in BUDGETS_GIB:
        report.part(f"budget {gib} GiB", lambda gib=gib: bench.budget(gib))
    print(json.dumps(report.parts["machine"]))
    print(table(report.parts))


if __name__ == "__main__":
    main()
