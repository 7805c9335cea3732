"""diffusers' names of the Z-Image transformer, as recipes for those of the published single file.

Follows huggingface/diffusers `loaders/single_file_utils.py` `convert_z_image_transformer_checkpoint_to_diffusers`.
"""

from __future__ import annotations

from collections.abc import Collection

from fluxserve.models.parts.transformer_names import numbered, tensor_recipes
from fluxserve.models.sizes import count
from fluxserve.tensors.reader import Mapped, Recipe, TensorReader, mapped_exactly

MARKER = "layers.0.adaLN_modulation.0.weight"
"""In both spellings."""
DIFFUSERS_MARKER = "all_x_embedder.2-1.weight"
PADS = ("x_pad_token", "cap_pad_token")
"""Matrices of one row; in some GGUF files vectors."""
_UNUSED = "norm_final.weight"
"""Left over in some files; neither diffusers nor ComfyUI uses it."""

_OUTER: dict[str, tuple[str, ...]] = {
    "x_embedder": ("all_x_embedder.2-1",),
    "cap_embedder.1": ("cap_embedder.1",),
    "t_embedder.mlp.0": ("t_embedder.mlp.0",),
    "t_embedder.mlp.2": ("t_embedder.mlp.2",),
    "final_layer.linear": ("all_final_layer.2-1.linear",),
    "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
}
_TEXT_NORM: dict[str, tuple[str, ...]] = {"cap_embedder.0": ("cap_embedder.0",)}
_SAME = (
    *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    *("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"),
)
_BLOCK: dict[str, tuple[str, ...]] = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
    "attention.q_norm": ("attention.norm_q",),
    "attention.k_norm": ("attention.norm_k",),
    **{name: (name,) for name in _SAME},
}
_MODULATION: dict[str, tuple[str, ...]] = {"adaLN_modulation.0": ("adaLN_modulation.0",)}


def layer_parts(depth: int, refiner_depth: int) -> dict[str, tuple[str, ...]]:
    """Each layer of a transformer with diffusers' layers that make it up, stacked on their rows."""
    return {**_OUTER, **_modulations(depth, refiner_depth), **_blocks(depth, refiner_depth)}


def transformer_recipes(depth: int, refiner_depth: int) -> dict[str, Recipe]:
    """Own name -> recipe of every tensor of a transformer."""
    with_bias = {**_OUTER, **_modulations(depth, refiner_depth)}
    return {
        **tensor_recipes(with_bias, ("weight", "bias")),
        **tensor_recipes({**_TEXT_NORM, **_blocks(depth, refiner_depth)}, ("weight",)),
        **{pad: Recipe((pad,), "flat") for pad in PADS},
    }


def single_file_recipes(keys: Collection[str]) -> dict[str, Recipe]:
    """Of the published single file. keys: all tensors' names."""
    return {key: Recipe((key,), "flat" if key in PADS else "rows") for key in keys}


def canonical_transformer(reader: TensorReader) -> TensorReader:
    """Under the single file's names, from either spelling."""
    keys = reader.keys()
    if DIFFUSERS_MARKER in keys:
        return mapped_exactly(reader, transformer_recipes(count(keys, "layers."), count(keys, "noise_refiner.")))
    return Mapped(reader, single_file_recipes([key for key in keys if key != _UNUSED]))


def _blocks(depth: int, refiner_depth: int) -> dict[str, tuple[str, ...]]:
    counts = {"noise_refiner": refiner_depth, "context_refiner": refiner_depth, "layers": depth}
    kinds = [numbered(kind, kind, blocks, _BLOCK) for kind, blocks in counts.items()]
    return {name: parts for layers in kinds for name, parts in layers.items()}


def _modulations(depth: int, refiner_depth: int) -> dict[str, tuple[str, ...]]:
    """Of all blocks but those that text passes alone."""
    return {
        **numbered("noise_refiner", "noise_refiner", refiner_depth, _MODULATION),
        **numbered("layers", "layers", depth, _MODULATION),
    }
