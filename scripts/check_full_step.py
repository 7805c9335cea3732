"""Compares one denoising step that fluxserve streams with diffusers' blocks, each read from the same file when it runs.

Neither holds the transformer: a checkpoint larger than the memory will do. In bfloat16, on the CPU. Ends with 1 if the
two differ by more than TOLERANCE, or took more memory than LIMIT_BYTES. The largest single difference is told beside.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from safetensors import safe_open
from torch import Tensor, nn

from fluxserve import FluxPipeline
from fluxserve.models.flux1.sizes import FluxParams

DTYPE = torch.bfloat16
TOLERANCE = 2e-2
"""Root mean square of the difference, as a share of the output's. With FLUX.1's 57 blocks bfloat16 alone makes 1.5e-2,
the same as between diffusers in bfloat16 and in float32; in float32 the two differ by 5e-7 (width 64, measured)."""
LIMIT_BYTES = 8 * 2**30
TIME, GUIDANCE = 0.5, 4.0
"""Both networks embed a thousand times these; bfloat16 holds 500 and 4000 exactly, so that rounding them is no part."""
SEED = 0


@dataclass(frozen=True)
class Inputs:
    """One sample: img (1, side * side, in_channels), txt (1, T, context_in_dim), pooled (1, vec_in_dim), in DTYPE.

    side: of the square of image tokens. guidance: (1,) float32; None for models without.
    """

    img: Tensor
    txt: Tensor
    pooled: Tensor
    side: int
    guidance: Tensor | None

    @classmethod
    def random(cls, params: FluxParams, side: int, text_tokens: int) -> Inputs:
        generator = torch.Generator().manual_seed(SEED)
        shapes = ((1, side * side, params.in_channels), (1, text_tokens, params.context_in_dim), (1, params.vec_in_dim))
        img, txt, pooled = (torch.randn(shape, generator=generator).to(DTYPE) for shape in shapes)
        return cls(img, txt, pooled, side, torch.tensor([GUIDANCE]) if params.guidance_embed else None)


def streamed(folder: Path, size: int) -> tuple[Inputs, Tensor, float]:
    """fluxserve's step, as little of the model in memory as possible: the inputs, the velocity and the seconds."""
    pipeline = FluxPipeline.from_pretrained(str(folder), device="cpu", dtype="bfloat16", offload="stream")
    transformer, side = pipeline.networks.model.denoiser, size // 16
    inputs = Inputs.random(transformer.params, side, pipeline.card.max_sequence_length)
    started = time.perf_counter()
    modulation = transformer.modulation(torch.tensor([TIME]), inputs.guidance, inputs.pooled)
    velocity = transformer(inputs.img, inputs.txt, modulation, transformer.rope(inputs.txt.shape[1], [(side, side)]))
    return inputs, velocity, time.perf_counter() - started


class Shards:
    """The tensors of a safetensors folder in diffusers' names, read module by module."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, list[tuple[str, Path]]] = defaultdict(list)
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for key in file.keys():
                    self._files[_unit(key)].append((key, path))

    def fill(self, name: str, module: nn.Module) -> None:
        """Gives a module on the meta device its tensors, which its file maps until `empty`."""
        tensors = {}
        for key, path in self._files[name]:
            with safe_open(path, "pt") as file:
                tensors[key.removeprefix(f"{name}.")] = file.get_tensor(key).to(DTYPE)
        module.load_state_dict(tensors, assign=True)


def _unit(key: str) -> str:
    """The name in `_units` of the module that a tensor belongs to."""
    first, second, *_ = key.split(".")
    return f"{first}.{second}" if second.isdigit() else first


def one_at_a_time(folder: Path, inputs: Inputs) -> tuple[Tensor, float]:
    """diffusers' step, from a model on the meta device whose modules hold weights only while they run."""
    config = FluxTransformer2DModel.load_config(folder)
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(config).eval()
    shards = Shards(folder)
    for name, module in _units(model):
        module.register_forward_pre_hook(_filler(shards, name))
        module.register_forward_hook(lambda module, *_: _empty(module))
    rows, columns = torch.meshgrid(torch.arange(inputs.side), torch.arange(inputs.side), indexing="ij")
    started = time.perf_counter()
    velocity = model(
        hidden_states=inputs.img,
        encoder_hidden_states=inputs.txt,
        pooled_projections=inputs.pooled,
        timestep=torch.tensor([TIME]),
        guidance=inputs.guidance,
        img_ids=torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).to(DTYPE),
        txt_ids=torch.zeros(inputs.txt.shape[1], 3, dtype=DTYPE),
        return_dict=False,
    )[0]
    return velocity, time.perf_counter() - started


def _units(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What is read at once: each block, and each of the small modules around them."""
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{i}", block) for i, block in enumerate(child))
        else:
            yield name, child


def _filler(shards: Shards, name: str) -> Callable[..., None]:
    return lambda module, *_: shards.fill(name, module)


def _empty(module: nn.Module) -> None:
    module.to("meta")


def compare(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """Differences as shares of the root mean square of diffusers' output."""
    ours, theirs = ours.float(), theirs.float()
    rms = theirs.square().mean().sqrt()
    return {
        "largest": float((ours - theirs).abs().max() / rms),
        "root_mean_square": float((ours - theirs).square().mean().sqrt() / rms),
    }


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/check_full_step", description=__doc__)
    parser.add_argument("folder", type=Path, help="a checkpoint in diffusers' layout, of safetensors")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    arguments = parser.parse_args()
    inputs, ours, our_seconds = streamed(arguments.folder, arguments.size)
    theirs, their_seconds = one_at_a_time(arguments.folder / "transformer", inputs)
    difference = compare(ours, theirs)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report = {
        "size": arguments.size,
        "fluxserve_s": round(our_seconds, 2),
        "diffusers_s": round(their_seconds, 2),
        "peak_resident_gib": round(peak_bytes / 2**30, 2),
        "difference": difference | {"tolerance": TOLERANCE},
    }
    print(json.dumps(report, indent=2))
    return int(not difference["root_mean_square"] <= TOLERANCE or peak_bytes > LIMIT_BYTES)


if __name__ == "__main__":
    sys.exit(main())
