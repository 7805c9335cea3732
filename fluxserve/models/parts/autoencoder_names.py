"""diffusers' names of the autoencoder's halves, as recipes for BFL's.

Follows huggingface/diffusers `scripts/convert_flux_to_diffusers.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from fluxserve.models.sizes import count
from fluxserve.tensors.reader import Recipe, TensorReader, mapped_exactly

BFL_MARKER = "decoder.up.0.block.0.conv1.weight"
DIFFUSERS_MARKER = "decoder.up_blocks.0.resnets.0.conv1.weight"

_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def canonical_autoencoder(reader: TensorReader) -> TensorReader:
    """Under BFL's names, from either spelling."""
    keys = reader.keys()
    if DIFFUSERS_MARKER not in keys:
        return reader
    levels = count(keys, "encoder.down_blocks.")
    blocks = count(keys, "encoder.down_blocks.0.resnets.")
    possible = autoencoder_recipes(levels, blocks)
    return mapped_exactly(reader, {key: recipe for key, recipe in possible.items() if recipe.parts[0] in keys})


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
