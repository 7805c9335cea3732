"""Times fluxserve beside diffusers on the same weights and holds it to goals: P1 to P4 and P6.

Runs alternate: fluxserve, diffusers, fluxserve. Where the two of fluxserve differ by over 5 %, something else was at
work, and the run does not count. A table comes last, JSON goes to --json. Ends with 1 if the two do not compute the
same: a fast wrong kernel is no result.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline as DiffusersPipeline
from torch import Tensor

from fluxserve import FluxPipeline
from fluxserve.completion import complete_request
from fluxserve.models.cancellation import never_cancelled
from fluxserve.request import GenerationRequest, Solver

TOLERANCES = {
    torch.bfloat16: {"step": 0.035, "decode": 0.1, "int8 step": 0.05},
    torch.float32: {"step": 1e-4, "decode": 1e-3, "int8 step": 0.05},
}
"""Difference from diffusers' output as a share of its root mean square: the largest; of int8 the root mean square."""
CONTROL = 0.05
TRIES = 3
"""Runs for each that has to count, at most."""
PROMPT = "A lighthouse at dusk"
DEMO_PROMPTS = ("a lion", "a red apple", "a slice of pizza", "A vibrant sunset in the mountains, 4k, high quality.")
DEMO_SIDE = 128


@dataclass(frozen=True)
class Line:
    """One measurement against its goal. value: None where too few runs counted. at_most: else at least."""

    goal: str
    what: str
    value: float | None
    limit: float
    at_most: bool = True
    detail: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        return "met" if (self.value <= self.limit if self.at_most else self.value >= self.limit) else "missed"

    def __str__(self) -> str:
        value = "-" if self.value is None else f"{self.value:.3f}"
        limit = f"{'<=' if self.at_most else '>='} {self.limit:g}"
        return f"{self.goal:4} {self.what:44} {value:>8} {limit:>9}  {self.verdict:12} {self.detail}"


class Pair:
    """One checkpoint in both pipelines, and one request. compute: of fluxserve."""

    def __init__(self, folder: str, theirs: DiffusersPipeline, dtype: str, compute: str = "exact") -> None:
        self.dtype = getattr(torch, dtype)
        self.ours = FluxPipeline.from_pretrained(
            folder,
            device="cpu",
            dtype=dtype,
            offload="none",
            compute=compute,
        )
        self.theirs = theirs

    def ask(self, side: int, steps: int) -> None:
        self.request: GenerationRequest = complete_request(
            self.ours.card, PROMPT, width=side, height=side, num_inference_steps=steps, seed=0
        )
        (self.sample,) = self.ours.begin(self.request)

    def our_step(self) -> Tensor:
        self.sample.step = 0
        return self.ours._velocity([self.sample])

    def their_step(self) -> Tensor:
        text, size = self.sample.cond.text, self.request.width // 16
        ids = DiffusersPipeline._prepare_latent_image_ids(1, size, size, torch.device("cpu"), self.dtype)
        velocity = self.theirs.transformer(
            hidden_states=self.sample.latents[None].to(self.dtype),
            encoder_hidden_states=text.states[None],
            pooled_projections=text.pooled[None],
            timestep=torch.tensor([1.0], dtype=self.dtype),
            guidance=None,
            img_ids=ids,
            txt_ids=torch.zeros(text.states.shape[0], 3, dtype=self.dtype),
            return_dict=False,
        )[0]
        return velocity.float()

    def our_text(self) -> Tensor:
        return self.ours.networks.model.encode(PROMPT, self.request.max_sequence_length, never_cancelled).states

    def their_text(self) -> Tensor:
        return self.theirs.encode_prompt(PROMPT, None, max_sequence_length=self.request.max_sequence_length)[0][0]

    def our_decode(self) -> Tensor:
        latents = self.ours.latents.unpack(self.sample.latents, self.sample.latent_size)
        return self.ours.pictures.autoencoder.decode(latents[None].to(self.dtype))

    def their_decode(self) -> Tensor:
        vae = self.theirs.vae
        latents = self.ours.latents.unpack(self.sample.latents, self.sample.latent_size)[None].to(self.dtype)
        return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]


class Bench:
    """What has been measured, and whether outputs agreed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.folder, self.dtype = arguments.folder, arguments.dtype
        self.sizes, self.pairs, self.steps = arguments.sizes, arguments.pairs, arguments.steps
        self.parts: Sequence[str] = arguments.parts
        self.lines: list[Line] = []
        self.differences: dict[str, float] = {}
        self.tolerances = TOLERANCES[getattr(torch, arguments.dtype)]

    def timed(
        self, goal: str, what: str, limit: float, ours: Callable[[], object], theirs: Callable[[], object]
    ) -> None:
        """A ratio of times, the median of the runs that count."""
        if goal not in self.parts:
            return
        runs, all_runs = in_turns(ours, theirs, self.pairs)
        value = statistics.median(run.ratio for run in runs) if len(runs) == self.pairs else None
        seconds = (
            ""
            if value is None
            else f"{statistics.median(r.ours for r in runs):.3f} s, diffusers "
            + (f"{statistics.median(r.theirs for r in runs):.3f} s")
        )
        self.add(Line(goal, what, value, limit, detail=f"{seconds} ({all_runs - len(runs)} of {all_runs} discarded)"))

    def add(self, line: Line) -> None:
        self.lines.append(line)
        print(line, flush=True)

    def agreed(self, part: str, what: str, value: float) -> None:
        self.differences[f"{part}, {what}"] = value
        if not value <= self.tolerances[part]:
            print(f"{part}, {what}: differs by {value:.4f}, at most {self.tolerances[part]} is right", flush=True)

    @property
    def wrong(self) -> bool:
        return any(not value <= self.tolerances[name.split(",")[0]] for name, value in self.differences.items())


@dataclass(frozen=True)
class Run:
    """Seconds of one run. again: of fluxserve a second time."""

    ours: float
    theirs: float
    again: float

    @property
    def ratio(self) -> float:
        return (self.ours + self.again) / 2 / self.theirs

    @property
    def counts(self) -> bool:
        return abs(self.ours / self.again - 1) <= CONTROL


def in_turns(ours: Callable[[], object], theirs: Callable[[], object], wanted: int) -> tuple[list[Run], int]:
    """The runs that count, after one of each that does not, and how many there were."""
    ours(), theirs()
    counted: list[Run] = []
    tried = 0
    while len(counted) < wanted and tried < TRIES * wanted:
        run = Run(*(seconds(action) for action in (ours, theirs, ours)))
        counted += [run] if run.counts else []
        tried += 1
    return counted, tried


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def exact_speed(bench: Bench, pair: Pair) -> None:
    """P1 and P4."""
    for side in bench.sizes:
        pair.ask(side, bench.steps)
        bench.agreed("step", f"{side}", largest_difference(pair.our_step(), pair.their_step()))
        bench.timed("P1", f"{bench.dtype} step, {side} x {side}", 0.85, pair.our_step, pair.their_step)
    bench.agreed("decode", f"{side}", largest_difference(pair.our_decode(), pair.their_decode()))
    bench.timed("P4", f"decode, {side} x {side}", 0.78, pair.our_decode, pair.their_decode)


def eight_bit_speed(bench: Bench, pair: Pair) -> None:
    """P2: against the peer's exact step."""
    for side in bench.sizes:
        pair.ask(side, bench.steps)
        bench.agreed("int8 step", f"{side}", relative_rms(pair.our_step(), pair.their_step()))
        limit = 0.7 if side < 1024 else 0.8
        bench.timed("P2", f"int8 step, {side} x {side}", limit, pair.our_step, pair.their_step)
    bench.timed("P2", "int8 text encoders", 0.7, pair.our_text, pair.their_text)


def eight_bit_error(bench: Bench) -> None:
    """P3: each pipeline encodes and steps by itself."""
    velocities = {}
    for compute, dtype in (("exact", "float32"), ("int8", bench.dtype)):
        pipeline = FluxPipeline.from_pretrained(
            bench.folder, device="cpu", dtype=dtype, offload="none", compute=compute
        )
        side = bench.sizes[0]
        request = complete_request(pipeline.card, PROMPT, width=side, height=side, num_inference_steps=4, seed=0)
        velocities[compute] = pipeline._velocity(pipeline.begin(request))
        del pipeline
        gc.collect()
    error = relative_rms(velocities["int8"], velocities["exact"])
    bench.add(Line("P3", "int8 velocity against float32, rms", error, 0.03))
    exact, packed = (
        FluxPipeline.from_pretrained("demo", device="cpu", dtype=bench.dtype, compute=c) for c in ("exact", "int8")
    )
    noise = [psnr(demo_picture(packed, prompt, 8), demo_picture(exact, prompt, 8)) for prompt in DEMO_PROMPTS]
    bench.add(Line("P3", f"int8 demo pictures to {bench.dtype}, least PSNR", min(noise), 28, at_most=False))


def fewer_evaluations(bench: Bench, prompts: Sequence[str]) -> None:
    """P6: by counts of steps, not by time."""
    demo = FluxPipeline.from_pretrained("demo", device="cpu", dtype="float32")
    gained = []
    for prompt in prompts:
        reference = demo_picture(demo, prompt, 200)
        second, first = (psnr(demo_picture(demo, prompt, *how), reference) for how in ((8, "dpmpp2m"), (14, "euler")))
        gained.append(second - first)
    bench.add(Line("P6", "dpmpp2m in 8 steps over euler in 14, mean dB", statistics.mean(gained), 0, at_most=False))


def demo_picture(pipeline: FluxPipeline, prompt: str, steps: int, solver: Solver = "euler") -> Any:
    request = complete_request(
        pipeline.card, prompt, width=DEMO_SIDE, height=DEMO_SIDE, num_inference_steps=steps, seed=1, solver=solver
    )
    (sample,) = pipeline.begin(request)
    while not sample.done:
        pipeline.step([sample])
    return np.asarray(pipeline.decode(sample), float)


def psnr(a: Any, b: Any) -> float:
    return float(10 * np.log10(255**2 / np.square(a - b).mean()))


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference over the root mean square."""
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().square().mean().sqrt())


def relative_rms(ours: Tensor, theirs: Tensor) -> float:
    """Root mean square of the difference over theirs."""
    return float((ours.float() - theirs.float()).square().mean().sqrt() / theirs.float().square().mean().sqrt())


def machine() -> dict[str, Any]:
    return {
        "cpu": torch.cpu.get_capabilities().get("cpu_name"),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in ("fluxserve", "torch", "diffusers", "transformers")},
    }


def measure(bench: Bench, prompts: Sequence[str]) -> None:
    """One pipeline of ours at a time beside the peer's: memory is short."""
    if "P3" in bench.parts:
        eight_bit_error(bench)
    if "P6" in bench.parts:
        fewer_evaluations(bench, prompts)
    theirs = None
    for goals, compute, part in ((("P1", "P4"), "exact", exact_speed), (("P2",), "int8", eight_bit_speed)):
        if set(goals) & set(bench.parts):
            theirs = theirs or load_theirs(bench)
            part(bench, Pair(bench.folder, theirs, bench.dtype, compute))
            gc.collect()


def load_theirs(bench: Bench) -> DiffusersPipeline:
    theirs = DiffusersPipeline.from_pretrained(bench.folder, dtype=getattr(torch, bench.dtype))
    theirs.set_progress_bar_config(disable=True)
    return theirs


def arguments_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.add_argument("folder", help="a checkpoint in diffusers' layout, e.g. of scripts/make_checkpoint --size slim")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--sizes", type=int, nargs="+", default=(256, 512), help="pixels a side; of the last a decode")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=5, help="runs that have to count")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--prompts", type=int, default=len(DEMO_PROMPTS), help="of the demo, for P6")
    parser.add_argument("--json", type=Path, help="where to write all of it")
    return parser.parse_args()


PARTS = ("P1", "P2", "P3", "P4", "P6")


@torch.inference_mode()
def main() -> int:
    arguments = arguments_of(argparse.ArgumentParser(prog="scripts/bench_peers", description=__doc__))
    bench = Bench(arguments)
    measure(bench, DEMO_PROMPTS[: arguments.prompts])
    report = {"machine": machine(), "dtype": bench.dtype, "differences": bench.differences}
    report["lines"] = [asdict(line) | {"verdict": line.verdict} for line in bench.lines]
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2))
    print(json.dumps(report["machine"]))
    for line in table(bench):
        print(line)
    return int(bench.wrong)


def table(bench: Bench) -> Iterator[str]:
    yield f"{'':4} {'':44} {'value':>8} {'goal':>9}  verdict"
    yield from (str(line) for line in sorted(bench.lines, key=lambda line: line.goal))
    for name, value in bench.differences.items():
        wrong = "" if value <= bench.tolerances[name.split(",")[0]] else ": NOT THE SAME"
        yield f"     difference from diffusers, {name}: {value:.4f}{wrong}"


if __name__ == "__main__":
    sys.exit(main())
