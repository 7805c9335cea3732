"""Times fluxserve's step, decode and whole picture beside diffusers' on the same weights, A B A B, and prints JSON.

Ends with 1 if the two do not compute the same: a fast wrong kernel is no result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from diffusers import FluxPipeline as DiffusersPipeline

from fluxserve import FluxPipeline
from fluxserve.completion import complete_request
from fluxserve.request import GenerationRequest

TOLERANCES = {
    torch.bfloat16: {"step": 0.035, "decode": 0.1},
    torch.float32: {"step": 1e-4, "decode": 1e-3},
}
"""Largest difference of an output, as a share of its root mean square."""
PROMPT = "A lighthouse at dusk"


class Pair:
    """One checkpoint in both pipelines, and one request."""

    def __init__(self, folder: str, dtype: str, size: int, steps: int) -> None:
        self.dtype = getattr(torch, dtype)
        self.ours = FluxPipeline.from_pretrained(folder, device="cpu", dtype=dtype, offload="none")
        self.theirs = DiffusersPipeline.from_pretrained(folder, dtype=self.dtype)
        self.theirs.set_progress_bar_config(disable=True)
        self.request: GenerationRequest = complete_request(
            self.ours.card, PROMPT, width=size, height=size, num_inference_steps=steps, seed=0
        )
        (self.sample,) = self.ours.begin(self.request)

    def our_step(self) -> torch.Tensor:
        self.sample.step = 0
        return self.ours._velocity([self.sample])

    def their_step(self) -> torch.Tensor:
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

    def our_decode(self) -> torch.Tensor:
        latents = self.ours.latents.unpack(self.sample.latents, self.sample.latent_size)
        return self.ours.pictures.autoencoder.decode(latents[None].to(self.dtype))

    def their_decode(self) -> torch.Tensor:
        vae = self.theirs.vae
        latents = self.ours.latents.unpack(self.sample.latents, self.sample.latent_size)[None].to(self.dtype)
        return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]

    def our_image(self) -> None:
        self.ours.conditioner.forget()
        self.ours.run(self.request)

    def their_image(self) -> None:
        request = self.request
        self.theirs(
            request.prompt,
            width=request.width,
            height=request.height,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=0.0,
            max_sequence_length=request.max_sequence_length,
            generator=torch.Generator("cpu").manual_seed(0),
        )


def in_turns(ours: Callable[[], object], theirs: Callable[[], object], pairs: int) -> dict[str, Any]:
    """Seconds of each, one warm-up and then A B A B; the ratio is the median of the pairs' own."""
    ours(), theirs()
    seconds: list[tuple[float, float]] = []
    for _ in range(pairs):
        times = []
        for action in (ours, theirs):
            started = time.perf_counter()
            action()
            times.append(time.perf_counter() - started)
        seconds.append((times[0], times[1]))
    return {
        "fluxserve_s": round(statistics.median(a for a, _ in seconds), 3),
        "diffusers_s": round(statistics.median(b for _, b in seconds), 3),
        "ratio": round(statistics.median(a / b for a, b in seconds), 3),
        "pairs": [[round(a, 3), round(b, 3)] for a, b in seconds],
    }


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest absolute difference over the root mean square."""
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().square().mean().sqrt())


def machine() -> dict[str, Any]:
    return {
        "cpu": torch.cpu.get_capabilities().get("cpu_name"),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in ("fluxserve", "torch", "diffusers", "transformers")},
    }


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench_peers", description=__doc__)
    parser.add_argument("folder", help="a checkpoint in diffusers' layout, e.g. of scripts/make_checkpoint --size slim")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    pair = Pair(arguments.folder, arguments.dtype, arguments.size, arguments.steps)
    differences = {
        "step": difference(pair.our_step(), pair.their_step()),
        "decode": difference(pair.our_decode(), pair.their_decode()),
    }
    report = {
        "machine": machine(),
        "size": arguments.size,
        "steps": arguments.steps,
        "dtype": arguments.dtype,
        "difference": differences,
        "step": in_turns(pair.our_step, pair.their_step, arguments.pairs),
        "decode": in_turns(pair.our_decode, pair.their_decode, arguments.pairs),
        "image": in_turns(pair.our_image, pair.their_image, arguments.pairs),
    }
    print(json.dumps(report, indent=2))
    return int(any(value > TOLERANCES[pair.dtype][part] for part, value in differences.items()))


if __name__ == "__main__":
    sys.exit(main())
