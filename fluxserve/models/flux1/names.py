"""diffusers' names of the FLUX networks, as recipes for BFL's. Knows no files.

Follows huggingface/diffusers `scripts/convert_flux_to_diffusers.py` and `loaders/single_file_utils.py`.
Each Linear's entry holds for `.weight` and `.bias` alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fluxserve.tensors.reader import Operation, Recipe

TRANSFORMER_MARKER = "transformer_blocks.0.attn.norm_added_k.weight"
AUTOENCODER_MARKER = "decoder.up_blocks.0.resnets.0.conv1.weight"

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
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
_SINGLE: dict[str, tuple[str, ...]] = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
_SINGLE_NORMS = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}

_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def linear_parts(depth: int, single_depth: int) -> dict[str, tuple[str, ...]]:
    """Each BFL Linear of a transformer with diffusers' Linears that make it up, stacked on their rows."""
    linears = dict(_EMBEDDERS)
    for block in range(depth):
        linears |= _numbered("double_blocks", "transformer_blocks", block, _DOUBLE)
    for block in range(single_depth):
        linears |= _numbered("single_blocks", "single_transformer_blocks", block, _SINGLE)
    return linears


def transformer_recipes(depth: int, single_depth: int, guidance_embed: bool) -> dict[str, Recipe]:
    """BFL name -> recipe of every tensor of a transformer."""
    recipes = {}
    for linear, parts in linear_parts(depth, single_depth).items():
        if guidance_embed or not linear.startswith("guidance_in."):
            op: Operation = "swap_halves" if linear == SWAPPED else "rows"
            for kind in ("weight", "bias"):
                recipes[f"{linear}.{kind}"] = Recipe(tuple(f"{part}.{kind}" for part in parts), op)
    for bfl, part in _norms(depth, single_depth):
        recipes[f"{bfl}.scale"] = Recipe((f"{part}.weight",))
    return recipes


def autoencoder_recipes(levels: int, blocks: int) -> dict[str, Recipe]:
    """BFL name -> recipe of every tensor an autoencoder may have (the shortcuts depend on its widths).

    blocks: residual blocks a level of the encoder; the decoder has one more.
    """
    recipes: dict[str, Recipe] = {}
    for bfl, part in _autoencoder_layers(levels, blocks):
        matrix = ".attn_1." in bfl and not bfl.endswith(".norm")
        recipes[f"{bfl}.weight"] = Recipe((f"{part}.weight",), "conv1x1" if matrix else "rows")
        recipes[f"{bfl}.bias"] = Recipe((f"{part}.bias",))
    return recipes


def count(keys: Collection[str], prefix: str) -> int:
    """How many numbered entries follow `prefix`: one more than the largest number, but no more than there are keys."""
    numbers = {key[len(prefix) :].split(".", 1)[0] for key in keys if key.startswith(prefix)}
    sane = [int(number) for number in numbers if number.isascii() and number.isdigit() and len(number) < 10]
    return min(1 + max(sane, default=-1), len(keys))


def _numbered(bfl: str, diffusers: str, block: int, names: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {
        f"{bfl}.{block}.{name}": tuple(f"{diffusers}.{block}.{part}" for part in parts) for name, parts in names.items()
    }


def _norms(depth: int, single_depth: int) -> Iterator[tuple[str, str]]:
    for block in range(depth):
        for bfl, part in _DOUBLE_NORMS.items():
            yield f"double_blocks.{block}.{bfl}", f"transformer_blocks.{block}.{part}"
    for block in range(single_depth):
        for bfl, part in _SINGLE_NORMS.items():
            yield f"single_blocks.{block}.{bfl}", f"single_transformer_blocks.{block}.{part}"


def _autoencoder_layers(levels: int, blocks: int) -> Iterator[tuple[str, str]]:
    """(BFL layer, diffusers layer) of encoder and decoder; the decoder's levels are numbered the other way round."""
    for half in ("encoder", "decoder"):
        yield f"{half}.conv_in", f"{half}.conv_in"
        yield f"{half}.conv_out", f"{half}.conv_out"
        yield f"{half}.norm_out", f"{half}.conv_norm_out"
        for bfl, part in _ATTENTION.items():
            yield f"{half}.mid.attn_1.{bfl}", f"{half}.mid_block.attentions.0.{part}"
        for number in (0, 1):
            yield from _resnet(f"{half}.mid.block_{number + 1}", f"{half}.mid_block.resnets.{number}")
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        yield f"encoder.down.{level}.downsample.conv", f"{down}.downsamplers.0.conv"
        yield f"decoder.up.{level}.upsample.conv", f"{up}.upsamplers.0.conv"
        for block in range(blocks):
            yield from _resnet(f"encoder.down.{level}.block.{block}", f"{down}.resnets.{block}")
        for block in range(blocks + 1):
            yield from _resnet(f"decoder.up.{level}.block.{block}", f"{up}.resnets.{block}")


def _resnet(bfl: str, diffusers: str) -> Iterator[tuple[str, str]]:
    for name, part in _RESNET.items():
        yield f"{bfl}.{name}", f"{diffusers}.{part}"
