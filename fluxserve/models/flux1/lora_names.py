"""The names that LoRA files give to the networks' Linears, as one dictionary. Reads no files.

Names are built from the model and looked up, never taken apart. Families, and how they spell a Linear:
kohya sd-scripts (BFL names, underscores), ComfyUI (BFL names), OneTrainer (diffusers' names, underscores), XLabs
(`processor`), fal (`base_model.model.`), PEFT, diffusers and ai-toolkit (diffusers' names).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from fluxserve.models.flux1.dimensions import ClipParams, T5Params
from fluxserve.models.flux1.names import SWAPPED, linear_parts
from fluxserve.models.flux1.shapes import transformer_shapes
from fluxserve.models.flux1.text_names import TABLES, clip_shapes, t5_shapes
from fluxserve.models.flux1.variants import FluxParams
from fluxserve.models.markings import PREFIXES

NetworkName = Literal["transformer", "clip", "t5"]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Target:
    """What a LoRA's module changes: `rows` rows of a Linear, from `first_row` on. columns: its inputs.

    swap_halves: the file's rows are diffusers' (scale, shift), the Linear's BFL's (shift, scale).
    """

    network: NetworkName
    linear: str
    first_row: int
    rows: int
    columns: int
    swap_halves: bool = False


def lora_targets(flux: FluxParams, clip: ClipParams, t5: T5Params) -> dict[str, Target]:
    """Every name that a LoRA file may give to a module of these networks."""
    named = dict(_transformer_names(flux))
    for linear, (rows, columns) in _linears(clip_shapes(clip)).items():
        named |= dict.fromkeys(_clip_names(linear), Target("clip", linear, 0, rows, columns))
    for linear, (rows, columns) in _linears(t5_shapes(t5)).items():
        named |= dict.fromkeys(_t5_names(linear), Target("t5", linear, 0, rows, columns))
    return named


def _linears(shapes: Shapes) -> dict[str, tuple[int, int]]:
    """(rows, columns) of each Linear."""
    return {
        key.removesuffix(".weight"): (shape[0], shape[1])
        for key, shape in shapes.items()
        if len(shape) == 2 and not key.endswith(TABLES)
    }


def _transformer_names(params: FluxParams) -> Iterator[tuple[str, Target]]:
    linears = _linears(transformer_shapes(params))
    for linear, (rows, columns) in linears.items():
        target = Target("transformer", linear, 0, rows, columns)
        yield f"lora_unet_{_underscored(linear)}", target
        yield from ((prefix + linear, target) for prefix in ("", *PREFIXES))
    for part, target in _diffusers_targets(params, linears):
        yield f"lora_transformer_{_underscored(part)}", target
        yield from ((prefix + part, target) for prefix in ("", *PREFIXES))
    for name, target in _xlabs_targets(params, linears):
        yield from ((prefix + name, target) for prefix in ("", *PREFIXES))


def _diffusers_targets(params: FluxParams, linears: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, Target]]:
    """diffusers' Linears as rows of BFL's: q, k and v are as wide as the model, the last part takes the rest."""
    for linear, parts in linear_parts(params.depth, params.depth_single_blocks).items():
        if linear not in linears:
            continue
        rows, columns = linears[linear]
        for number, part in enumerate(parts):
            first = number * params.hidden_size
            size = rows - first if number == len(parts) - 1 else params.hidden_size
            yield part, Target("transformer", linear, first, size, columns, swap_halves=linear == SWAPPED)


def _xlabs_targets(params: FluxParams, linears: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, Target]]:
    for block in range(params.depth):
        for number, stream in ((1, "img"), (2, "txt")):
            for name in ("qkv", "proj"):
                linear = f"double_blocks.{block}.{stream}_attn.{name}"
                target = Target("transformer", linear, 0, *linears[linear])
                yield f"double_blocks.{block}.processor.{name}_lora{number}", target
    for block in range(params.depth_single_blocks):
        for name, linear, rows in (("qkv", "linear1", 3 * params.hidden_size), ("proj", "linear2", params.hidden_size)):
            path = f"single_blocks.{block}.{linear}"
            yield f"single_blocks.{block}.processor.{name}_lora", Target("transformer", path, 0, rows, linears[path][1])


def _clip_names(linear: str) -> Iterator[str]:
    yield f"text_encoders.clip_l.transformer.text_model.{linear}"
    yield f"text_encoder.text_model.{linear}"
    yield f"text_encoder.{linear}"
    for prefix in ("lora_te1", "lora_te"):
        yield f"{prefix}_text_model_{_underscored(linear)}"


def _t5_names(linear: str) -> Iterator[str]:
    yield f"text_encoders.t5xxl.transformer.{linear}"
    yield f"text_encoder_2.{linear}"
    yield f"lora_te3_{_underscored(linear)}"


def _underscored(name: str) -> str:
    return name.replace(".", "_")
