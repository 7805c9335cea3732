"""diffusers' names of the FLUX.2 transformer, as recipes for BFL's.

Follows huggingface/diffusers `loaders/single_file_utils.py` `convert_flux2_transformer_checkpoint_to_diffusers`.
"""

from __future__ import annotations

from fluxserve.models.parts.transformer_names import Layers, numbered, scale_recipes, tensor_recipes, with_scales
from fluxserve.models.sizes import count
from fluxserve.tensors.reader import Recipe, TensorReader, mapped_exactly

BFL_MARKER = "single_stream_modulation.lin.weight"
DIFFUSERS_MARKER = "single_stream_modulation.linear.weight"

_TOP: dict[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
    "guidance_in.in_layer": ("time_guidance_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_guidance_embed.guidance_embedder.linear_2",),
    "double_stream_modulation_img.lin": ("double_stream_modulation_img.linear",),
    "double_stream_modulation_txt.lin": ("double_stream_modulation_txt.linear",),
    "single_stream_modulation.lin": ("single_stream_modulation.linear",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
SWAPPED = "final_layer.adaLN_modulation.1"
"""diffusers holds (scale, shift), BFL (shift, scale)."""

_DOUBLE: dict[str, tuple[str, ...]] = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
_DOUBLE_NORMS = {
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
}
_SINGLE: dict[str, tuple[str, ...]] = {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}
_SINGLE_NORMS = {"norm.query_norm": ("attn.norm_q",), "norm.key_norm": ("attn.norm_k",)}


def linear_parts(depth: int, single_depth: int) -> dict[str, tuple[str, ...]]:
    """Each BFL Linear of a transformer with diffusers' Linears that make it up, stacked on their rows."""
    return {**_TOP, **_of_blocks(depth, single_depth, _DOUBLE, _SINGLE)}


def transformer_recipes(depth: int, single_depth: int, guidance_embed: bool) -> dict[str, Recipe]:
    """BFL name -> recipe of every tensor of a transformer."""
    linears = linear_parts(depth, single_depth)
    there = {name: parts for name, parts in linears.items() if guidance_embed or not name.startswith("guidance_in.")}
    norms = _of_blocks(depth, single_depth, _DOUBLE_NORMS, _SINGLE_NORMS)
    return {**tensor_recipes(there, ("weight",), SWAPPED), **scale_recipes(norms)}


def _of_blocks(depth: int, single_depth: int, double: Layers, single: Layers) -> dict[str, tuple[str, ...]]:
    return {
        **numbered("double_blocks", "transformer_blocks", depth, double),
        **numbered("single_blocks", "single_transformer_blocks", single_depth, single),
    }


def canonical_transformer(reader: TensorReader) -> TensorReader:
    """Under BFL's names, from either spelling."""
    keys = reader.keys()
    if DIFFUSERS_MARKER not in keys:
        return with_scales(reader)
    guidance = any(key.startswith("time_guidance_embed.guidance_embedder.") for key in keys)
    depth, single_depth = count(keys, "transformer_blocks."), count(keys, "single_transformer_blocks.")
    return mapped_exactly(reader, transformer_recipes(depth, single_depth, guidance))
