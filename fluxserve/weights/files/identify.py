"""What a weight file holds, told from its content: tensor names and shapes, never the file's name. Knows no folders."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

from fluxserve.errors import CheckpointError
from fluxserve.models.flux1 import names as diffusers
from fluxserve.models.flux1.text_names import (
    CLIP_MARKER,
    CLIP_PREFIX,
    T5_GGUF_MARKER,
    T5_MARKER,
    canonical_clip,
    canonical_t5,
)
from fluxserve.models.markings import PREFIXES
from fluxserve.tensors.reader import TensorReader, mapped_exactly, name_some, renamed
from fluxserve.weights.files.bitsandbytes import FourBitReader, is_four_bit
from fluxserve.weights.files.fp8 import Float8Reader, is_float8, refuse_other_formats
from fluxserve.weights.files.gguf_file import GgufFile
from fluxserve.weights.files.safetensors_file import SafetensorsFile

Part = Literal["transformer", "autoencoder", "t5", "clip"]

BFL_MARKER = "double_blocks.0.img_attn.norm.key_norm.scale"
BFL_AUTOENCODER_MARKER = "decoder.up.0.block.0.conv1.weight"

PART_MARKERS: dict[str, Part] = {
    BFL_MARKER: "transformer",
    diffusers.TRANSFORMER_MARKER: "transformer",
    BFL_AUTOENCODER_MARKER: "autoencoder",
    diffusers.AUTOENCODER_MARKER: "autoencoder",
    T5_MARKER: "t5",
    T5_GGUF_MARKER: "t5",
    CLIP_PREFIX + CLIP_MARKER: "clip",
    CLIP_MARKER: "clip",
}

ALL_IN_ONE_PREFIXES = (
    "model.diffusion_model.",
    "vae.",
    "text_encoders.t5xxl.transformer.",
    "text_encoders.clip_l.transformer.",
)
ALL_IN_ONE_IGNORED = frozenset({"text_encoders.clip_l.logit_scale", "text_encoders.t5xxl.logit_scale"})

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")

FOREIGN = {
    (".qweight", ".wscales"): "quantised by nunchaku (SVDQuant); use a GGUF Q4_K_S or an NF4 file instead",
    (".encoded_exponent", ".sign_mantissa"): "compressed by DFloat11; use the bfloat16 file instead",
    (".SCB",): "quantised by bitsandbytes to LLM.int8; use an fp8, GGUF Q8_0 or NF4 file instead",
    ("single_stream_modulation.lin.weight",): "FLUX.2; fluxserve draws with FLUX.1",
    ("distilled_guidance_layer.in_proj.bias",): "Chroma; fluxserve draws with FLUX.1",
    ("redux_up.weight",): "FLUX.1 Redux, an adapter that fluxserve does not support; name a transformer",
    ("decoder.layers.0.weight",): "TAEF1; fluxserve decodes with FLUX.1's own autoencoder (ae.safetensors)",
    (".lora_down.weight",): "a LoRA, which changes a model and is none; give it with --lora",
    (".lora_A.weight",): "a LoRA, which changes a model and is none; give it with --lora",
}
"""Endings of tensor names that together give a foreign file away, and what it is."""

LONGCAT_TEXT_WIDTH = 3584


def open_file(path: Path) -> TensorReader:
    """A weight file under its own names.

    Raises:
        CheckpointError: it cannot be read, or is neither safetensors nor GGUF; pickles are refused unread.
    """
    start = _first_bytes(path)
    looks_safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32
    if path.suffix.lower() in PICKLE_SUFFIXES or (not looks_safetensors and _is_pickle(start)):
        raise CheckpointError(f"{path}: is a pickle, which can run code and is never read; convert it to safetensors")
    if start.startswith(b"GGUF"):
        return GgufFile(path)
    return SafetensorsFile(path)


def components(reader: TensorReader) -> dict[Part, TensorReader]:
    """The networks in a file, under canonical names.

    Raises:
        CheckpointError: the file is foreign (told by name, with what to use instead), or holds what belongs to none.
    """
    refuse_foreign(reader)
    found: dict[Part, TensorReader] = {}
    for group in map(_whole_tensors, _groups(reader)):
        part = _part(group)
        if part in found:
            raise CheckpointError(f"{reader.source}: holds two networks that could be the {part}")
        found[part] = _CANONICAL[part](group)
    return found


def refuse_foreign(reader: TensorReader) -> None:
    """Raises: CheckpointError that says what the file is, if it is none of FLUX.1's networks or packed unreadably."""
    keys = reader.keys()
    for endings, what in FOREIGN.items():
        if all(any(key.endswith(ending) for key in keys) for ending in endings):
            raise CheckpointError(f"{reader.source}: is {what}")
    for key in keys:
        if key.endswith("txt_in.weight") and reader.shape(key)[1:] == (LONGCAT_TEXT_WIDTH,):
            raise CheckpointError(f"{reader.source}: is LongCat-Image; fluxserve draws with FLUX.1")
    refuse_other_formats(reader, reader.metadata if isinstance(reader, SafetensorsFile) else {})


def _groups(reader: TensorReader) -> list[TensorReader]:
    """The file's tensors by network, prefixes stripped. One group, but for all-in-one checkpoints."""
    present = [prefix for prefix in ALL_IN_ONE_PREFIXES if any(key.startswith(prefix) for key in reader.keys())]
    if len(present) < 2:
        prefix = next((prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in reader.keys())), "")
        return [_stripped(reader, prefix, reader.keys())]
    others = [key for key in reader.keys() if not key.startswith(tuple(present)) and key not in ALL_IN_ONE_IGNORED]
    if others:
        raise CheckpointError(f"{reader.source}: {name_some([f'unexpected {key}' for key in others])}")
    return [_stripped(reader, prefix, [key for key in reader.keys() if key.startswith(prefix)]) for prefix in present]


def _stripped(reader: TensorReader, prefix: str, keys: Collection[str]) -> TensorReader:
    return renamed(reader, {key.removeprefix(prefix): key for key in keys}) if prefix else reader


def _whole_tensors(group: TensorReader) -> TensorReader:
    """`group` with each quantised tensor under its one name, whatever companions it has in the file."""
    reader = FourBitReader(group) if is_four_bit(group) else group
    return Float8Reader(reader) if is_float8(reader) else reader


def _part(group: TensorReader) -> Part:
    for marker, part in PART_MARKERS.items():
        if marker in group.keys():
            return part
    names = name_some(sorted(group.keys())) or "nothing"
    raise CheckpointError(f"{group.source}: holds no network of FLUX.1 that fluxserve knows; it holds {names}")


def _canonical_transformer(reader: TensorReader) -> TensorReader:
    keys = reader.keys()
    if diffusers.TRANSFORMER_MARKER not in keys:
        return reader
    guidance = any(key.startswith("time_text_embed.guidance_embedder.") for key in keys)
    depth = diffusers.count(keys, "transformer_blocks.")
    single_depth = diffusers.count(keys, "single_transformer_blocks.")
    return mapped_exactly(reader, diffusers.transformer_recipes(depth, single_depth, guidance))


def _canonical_autoencoder(reader: TensorReader) -> TensorReader:
    keys = reader.keys()
    if diffusers.AUTOENCODER_MARKER not in keys:
        return reader
    levels = diffusers.count(keys, "encoder.down_blocks.")
    blocks = diffusers.count(keys, "encoder.down_blocks.0.resnets.")
    possible = diffusers.autoencoder_recipes(levels, blocks)
    return mapped_exactly(reader, {key: recipe for key, recipe in possible.items() if recipe.parts[0] in keys})


_CANONICAL: dict[Part, Callable[[TensorReader], TensorReader]] = {
    "transformer": _canonical_transformer,
    "autoencoder": _canonical_autoencoder,
    "t5": canonical_t5,
    "clip": canonical_clip,
}


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _is_pickle(start: bytes) -> bool:
    """A zip archive (torch's format since 1.6) or a bare pickle of protocol 2 to 5."""
    return start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05")
