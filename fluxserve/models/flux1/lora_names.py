"""The names that LoRA files give to the networks' Linears, as one dictionary.

Names are built from the model and looked up, never taken apart. Families, and how they spell a Linear:
kohya sd-scripts (BFL names, underscores), ComfyUI (BFL names), OneTrainer (diffusers' names, underscores; T5 is
`lora_te2_`), XLabs (`processor`), fal and peft (`base_model.model.`), diffusers and ai-toolkit (diffusers' names).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache

from fluxserve.models.flux1.names import SWAPPED, linear_parts, norm_parts
from fluxserve.models.flux1.shapes import transformer_shapes
from fluxserve.models.flux1.sizes import TINY, FluxParams, ModelSizes
from fluxserve.models.flux1.text.names import TABLES, clip_shapes, t5_shapes
from fluxserve.models.lora_target import FusedNames, LoraTarget, linears, numbers_apart, prefixed, underscored
from fluxserve.models.markings import PREFIXES


def lora_targets(sizes: ModelSizes) -> dict[str, LoraTarget]:
    """Every name that a LoRA file may give to a module of these networks."""
    clip, t5 = sizes.clip, sizes.t5
    named = dict(_transformer_names(sizes.transformer))
    for linear, (rows, columns) in linears(clip_shapes(clip), TABLES).items():
        named |= dict.fromkeys(_clip_names(linear), LoraTarget("clip", linear, 0, rows, columns))
    for linear, (rows, columns) in linears(t5_shapes(t5), TABLES).items():
        named |= dict.fromkeys(_t5_names(linear), LoraTarget("t5", linear, 0, rows, columns))
    return named


def norm_names(params: FluxParams) -> dict[str, str]:
    """Every name that a control LoRA may give to a norm's scale -> the transformer's tensor."""
    named: dict[str, str] = {}
    for norm, (part,) in norm_parts(params.depth, params.depth_single_blocks).items():
        for prefix in ("", *PREFIXES):
            named |= dict.fromkeys(
                (f"{prefix}{norm}.scale", f"{prefix}{norm}.weight", f"{prefix}{part}.weight"), f"{norm}.scale"
            )
    return named


def names_lora(module: str) -> bool:
    """Whether it is such a name, whatever the sizes."""
    return numbers_apart(module) in _spellings()


@cache
def _spellings() -> frozenset[str]:
    smallest = replace(TINY, transformer=replace(TINY.transformer, guidance_embed=True))
    return frozenset(map(numbers_apart, (*lora_targets(smallest), *norm_names(smallest.transformer))))


def _transformer_names(params: FluxParams) -> Iterator[tuple[str, LoraTarget]]:
    own = linears(transformer_shapes(params))
    parts = linear_parts(params.depth, params.depth_single_blocks)
    yield from FusedNames("transformer", own, parts, params.hidden_size, SWAPPED).targets()
    for name, target in _xlabs_targets(params, own):
        yield from prefixed(name, target)


def _xlabs_targets(params: FluxParams, own: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, LoraTarget]]:
    for block in range(params.depth):
        for number, stream in ((1, "img"), (2, "txt")):
            for name in ("qkv", "proj"):
                linear = f"double_blocks.{block}.{stream}_attn.{name}"
                target = LoraTarget("transformer", linear, 0, *own[linear])
                yield f"double_blocks.{block}.processor.{name}_lora{number}", target
    for block in range(params.depth_single_blocks):
        for name, linear, rows in (("qkv", "linear1", 3 * params.hidden_size), ("proj", "linear2", params.hidden_size)):
            path = f"single_blocks.{block}.{linear}"
            yield f"single_blocks.{block}.processor.{name}_lora", LoraTarget("transformer", path, 0, rows, own[path][1])


def _clip_names(linear: str) -> Iterator[str]:
    yield f"text_encoders.clip_l.transformer.text_model.{linear}"
    yield f"text_encoder.text_model.{linear}"
    yield f"text_encoder.{linear}"
    yield f"base_model.model.text_model.{linear}"
    yield f"base_model.model.{linear}"
    for prefix in ("lora_te1", "lora_te"):
        yield f"{prefix}_text_model_{underscored(linear)}"


def _t5_names(linear: str) -> Iterator[str]:
    yield f"text_encoders.t5xxl.transformer.{linear}"
    yield f"text_encoder_2.{linear}"
    yield f"base_model.model.{linear}"
    for prefix in ("lora_te2", "lora_te3"):
        yield f"{prefix}_{underscored(linear)}"
