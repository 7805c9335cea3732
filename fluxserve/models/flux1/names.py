"""diffusers' names of the FLUX.1 transformer, as recipes for BFL's.

Follows huggingface/diffusers `scripts/convert_flux_to_diffusers.py` and `loaders/single_file_utils.py`.
Each Linear's entry holds for `.weight` and `.bias` alike.
"""

from __future__ import annotations

from fluxserve.models.parts.transformer_names import Layers, numbered, scale_recipes, tensor_recipes, with_scales
from fluxserve.models.sizes import count
from fluxserve.tensors.reader import Recipe, TensorReader, mapped_exactly

BFL_MARKER = "double_blocks.0.img_attn.norm.key_norm.scale"
BFL_WEIGHT_MARKER = "double_blocks.0.img_attn.norm.key_norm.weight"
"""ComfyUI's saves since 2026 name the scales of norms so."""

DIFFUSERS_MARKER = "transformer_blocks.0.attn.norm_added_k.weight"

_EMBEDDERS: dict[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
SWAPPED = "final_layer.adaLN_modulation.1"
"""diffusers holds (scale, shift), BFL (shift, scale): the one modulation whose halves are exchanged."""

_DOUBLE: dict[str, tuple[str, ...]] = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_DOUBLE_NORMS = {
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
}
_SINGLE: dict[str, tuple[str, ...]] = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
_SINGLE_NORMS = {"norm.query_norm": ("attn.norm_q",), "norm.key_norm": ("attn.norm_k",)}


def canonical_transformer(reader: TensorReader) -> TensorReader:
    """Under BFL's names, from any spelling."""
    keys = reader.keys()
    if DIFFUSERS_MARKER not in keys:
        return with_scales(reader)
    guidance = any(key.startswith("time_text_embed.guidance_embedder.") for key in keys)
    depth = count(keys, "transformer_blocks.")
    single_depth = count(keys, "single_transformer_blocks.")
    return mapped_exactly(reader, transformer_recipes(depth, single_depth, guidance))


def linear_parts(depth: int, single_depth: int) -> dict[str, tuple[str, ...]]:
    """Each BFL Linear of a transformer with diffusers' Linears that make it up, stacked on their rows."""
    return {**_EMBEDDERS, **_of_blocks(depth, single_depth, _DOUBLE, _SINGLE)}


def transformer_recipes(depth: int, single_depth: int, guidance_embed: bool) -> dict[str, Recipe]:
    """BFL name -> recipe of every tensor of a transformer."""
    linears = linear_parts(depth, single_depth)
    there = {name: parts for name, parts in linears.items() if guidance_embed or not name.startswith("guidance_in.")}
    norms = norm_parts(depth, single_depth)
    return {**tensor_recipes(there, ("weight", "bias"), SWAPPED), **scale_recipes(norms)}


def _of_blocks(depth: int, single_depth: int, double: Layers, single: Layers) -> dict[str, tuple[str, ...]]:
    return {
        **numbered("double_blocks", "transformer_blocks", depth, double),
        **numbered("single_blocks", "single_transformer_blocks", single_depth, single),
    }


def norm_parts(depth: int, single_depth: int) -> dict[str, tuple[str, ...]]:
    """Each norm of a transformer with diffusers' name of it."""
    return _of_blocks(depth, single_depth, _DOUBLE_NORMS, _SINGLE_NORMS)
