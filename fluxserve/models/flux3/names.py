"""diffusers' names of the FLUX.3 transformer, as recipes for BFL's.

Follows huggingface/diffusers `loaders/single_file_utils.py` `convert_flux3_transformer_checkpoint_to_diffusers`.
"""

from __future__ import annotations

from fluxserve.models.parts.transformer_names import Layers, numbered, scale_recipes, tensor_recipes, with_scales
from fluxserve.models.sizes import count
from fluxserve.tensors.reader import Recipe, TensorReader, mapped_exactly, renamed

BFL_MARKER = "early_stream_modulations.image.lin.weight"
DIFFUSERS_MARKER = "early_stream_modulations.image.linear.weight"
DISTILLED_MARKER = "ref_time_in.in_layer.weight"
_TRAINING = "repa_projectors."
"""Heads that training alone used, and some files still hold."""

_TARGET_TIME: dict[str, tuple[str, ...]] = {
    "ref_time_in.in_layer": ("target_timestep_embedder.linear_1",),
    "ref_time_in.out_layer": ("target_timestep_embedder.linear_2",),
}
_TOP: dict[str, tuple[str, ...]] = {
    "emb_in.image": ("x_embedders.image",),
    "emb_in.image_cond": ("x_embedders.image_cond",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("timestep_embedder.linear_1",),
    "time_in.out_layer": ("timestep_embedder.linear_2",),
    **{
        f"{stage}_stream_modulations.{mode}.lin": (f"{stage}_stream_modulations.{mode}.linear",)
        for stage in ("early", "single")
        for mode in ("image", "image_cond", "txt")
    },
    "final_layer.image.linear": ("proj_out",),
    "final_layer.image.adaLN_modulation.1": ("norm_out.linear",),
}
SWAPPED = "final_layer.image.adaLN_modulation.1"
"""diffusers holds (scale, shift), BFL (shift, scale)."""

_ALONE = {
    "content_mode_blocks.image": "mode_blocks.image",
    "content_mode_blocks.image_cond": "mode_blocks.image_cond",
    "txt_mode_blocks": "txt_mode_blocks",
}
_BLOCK: dict[str, tuple[str, ...]] = {
    "q_proj": ("attn.to_q",),
    "k_proj": ("attn.to_k",),
    "v_proj": ("attn.to_v",),
    "attn_out": ("attn.to_out.0",),
    "mlp_in": ("ff.linear_in",),
    "mlp_out": ("ff.linear_out",),
}
_NORMS: dict[str, tuple[str, ...]] = {"norm.query_norm": ("attn.norm_q",), "norm.key_norm": ("attn.norm_k",)}


def linear_parts(depth: int, single_depth: int) -> dict[str, tuple[str, ...]]:
    """Each BFL Linear of a transformer with diffusers' name for it."""
    return {**_TOP, **_TARGET_TIME, **_of_blocks(depth, single_depth, _BLOCK)}


def transformer_recipes(depth: int, single_depth: int, flow_map: bool) -> dict[str, Recipe]:
    """BFL name -> recipe of every tensor of a transformer."""
    linears = linear_parts(depth, single_depth)
    there = {name: parts for name, parts in linears.items() if flow_map or name not in _TARGET_TIME}
    norms = _of_blocks(depth, single_depth, _NORMS)
    return {**tensor_recipes(there, ("weight",), SWAPPED), **scale_recipes(norms)}


def canonical_transformer(reader: TensorReader) -> TensorReader:
    """Under BFL's names, from either spelling."""
    keys = [key for key in reader.keys() if not key.startswith(_TRAINING)]
    known = renamed(reader, {key: key for key in keys}) if len(keys) < len(reader.keys()) else reader
    if DIFFUSERS_MARKER not in keys:
        return with_scales(known)
    flow_map = any(key.startswith("target_timestep_embedder.") for key in keys)
    depth, single_depth = count(keys, "txt_mode_blocks."), count(keys, "single_transformer_blocks.")
    return mapped_exactly(known, transformer_recipes(depth, single_depth, flow_map))


def _of_blocks(depth: int, single_depth: int, layers: Layers) -> dict[str, tuple[str, ...]]:
    alone = [numbered(ours, theirs, depth, layers) for ours, theirs in _ALONE.items()]
    joint = numbered("single_blocks", "single_transformer_blocks", single_depth, layers)
    return {name: parts for blocks in (*alone, joint) for name, parts in blocks.items()}
