"""Times whole pictures of FLUX.2 [klein] by fluxserve and by diffusers, from the same files, in bfloat16 on the CPU.

Each side has a process of its own, by turns, so that the memory of one is no part of the other's: it loads, draws one
picture to warm up, then is timed for one from text and for one with a reference (noise, of --size), all prompts fresh.
Prints medians and their ratios; JSON goes to --json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

STEPS = 4
SEED = 0
WARM_UP, FROM_TEXT, WITH_REFERENCE = "a lighthouse at dusk", "a fox in the snow", "an old map of an island"
Draw = Callable[[str, list[Image.Image]], object]


@dataclass(frozen=True)
class Run:
    """What one process measured. peak_bytes: most memory resident, mapped files too."""

    load_s: float
    first_s: float
    text_s: float
    reference_s: float
    peak_bytes: int


def ours(folder: Path, size: int, budget: int | None, scratch: Path) -> Draw:
    from fluxserve import FluxPipeline

    options = {} if budget is None else {"memory_budget": budget}
    pipeline = FluxPipeline.from_pretrained(str(folder), device="cpu", dtype="bfloat16", **options)

    def draw(prompt: str, pictures: list[Image.Image]) -> object:
        shape = {"width": size, "height": size, "num_inference_steps": STEPS, "seed": SEED}
        return pipeline.generate(prompt, images=pictures or None, **shape)

    return draw


def theirs(folder: Path, size: int, budget: int | None, scratch: Path) -> Draw:
    """With a budget: half of it for the transformer and half for the text encoder, the rest of both on the disk."""
    from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
    from transformers import Qwen3ForCausalLM

    parts: dict[str, Any] = {}
    if budget is not None:
        limits = {"device_map": "auto", "dtype": torch.bfloat16, "max_memory": {"cpu": budget // 2}}
        for name, kind in (("transformer", Flux2Transformer2DModel), ("text_encoder", Qwen3ForCausalLM)):
            parts[name] = kind.from_pretrained(folder / name, offload_folder=str(scratch / name), **limits)
    pipeline = Flux2KleinPipeline.from_pretrained(folder, dtype=torch.bfloat16, **parts)
    pipeline.set_progress_bar_config(disable=True)

    def draw(prompt: str, pictures: list[Image.Image]) -> object:
        generator = torch.Generator().manual_seed(SEED)
        shape = {"width": size, "height": size, "num_inference_steps": STEPS}
        return pipeline(prompt=prompt, image=pictures or None, generator=generator, **shape).images[0]

    return draw


SIDES = {"fluxserve": ours, "diffusers": theirs}


def measure(side: str, arguments: argparse.Namespace) -> Run:
    budget = arguments.memory_gib and int(arguments.memory_gib * 2**30)
    with TemporaryDirectory() as scratch:
        started = time.perf_counter()
        draw = SIDES[side](arguments.folder, arguments.size, budget, Path(scratch))
        load_s = time.perf_counter() - started
        first_s, text_s = (_seconds(draw, prompt, []) for prompt in (WARM_UP, FROM_TEXT))
        reference_s = _seconds(draw, WITH_REFERENCE, [_noise(arguments.size)])
    return Run(load_s, first_s, text_s, reference_s, _peak_bytes())


def _seconds(draw: Draw, prompt: str, pictures: list[Image.Image]) -> float:
    started = time.perf_counter()
    draw(prompt, pictures)
    return time.perf_counter() - started


def _noise(size: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(SEED).integers(0, 256, (size, size, 3), dtype=np.uint8))


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def in_turns(arguments: argparse.Namespace) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    for _ in range(arguments.pairs):
        for side in SIDES:
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs[side].append(Run(**json.loads(done.stdout.splitlines()[-1])))
            print(side, runs[side][-1], flush=True)
    return runs


def summary(runs: dict[str, list[Run]]) -> dict[str, dict[str, float]]:
    """Medians of each side, in seconds and GiB, and of fluxserve's shares of diffusers' within each pair."""
    values: dict[str, Callable[[Run], float]] = {
        "text_s": lambda run: run.text_s,
        "reference_s": lambda run: run.reference_s,
        "peak_gib": lambda run: run.peak_bytes / 2**30,
    }
    return {name: _compared(value, runs) for name, value in values.items()}


def _compared(value: Callable[[Run], float], runs: dict[str, list[Run]]) -> dict[str, float]:
    sides = {side: [value(run) for run in measured] for side, measured in runs.items()}
    shares = [ours / theirs for ours, theirs in zip(sides["fluxserve"], sides["diffusers"], strict=True)]
    return {name: round(statistics.median(found), 3) for name, found in (sides | {"ratio": shares}).items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench_pictures", description=__doc__)
    parser.add_argument("folder", type=Path, help="FLUX.2 [klein] in diffusers' layout")
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    parser.add_argument(
        "--memory-gib", type=float, help="a budget; by default fluxserve's own choice, and all of diffusers in memory"
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(asdict(measure(arguments.side, arguments))))
        return
    runs = in_turns(arguments)
    report = summary(runs) | {"runs": {side: [asdict(run) for run in measured] for side, measured in runs.items()}}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))
    print(json.dumps(summary(runs), indent=2))


if __name__ == "__main__":
    main()
