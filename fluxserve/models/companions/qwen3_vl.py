"""The text half of Qwen3-VL as a text encoder: Qwen3's layers under other names, with another base of RoPE.

Its RoPE has three axes, along which a prompt without pictures goes at once: then it is Qwen3's own. The half that sees
pictures is never read. Names in files are those of transformers' `Qwen3VLForConditionalGeneration`.
"""

from __future__ import annotations

from functools import partial

from fluxserve.models.companions.qwen3 import (
    EMBEDDING,
    MARKER,
    NORM_EPS,
    Qwen3Params,
    reads_qwen3,
    stored_qwen3,
)
from fluxserve.models.family import BlockLayout, Part
from fluxserve.models.synthetic import SyntheticNetwork
from fluxserve.tensors.reader import Recipe, Shapes, TensorReader, with_tables

PREFIX = "model.language_model."
SHORT_PREFIX = "language_model."
_SEEING = ("model.visual.", "visual.")
ROPE_THETA = 5_000_000.0


def qwen3_vl_part(layers: int) -> Part:
    """The encoder up to a layer, counted from 1, for the families that read no later one."""
    return Part(
        name="qwen3_vl",
        title="Qwen3-VL text encoder",
        role="text_encoder",
        folder="text_encoder",
        markers=(PREFIX + MARKER, SHORT_PREFIX + MARKER),
        canonical=partial(canonical_qwen3_vl, layers),
        bundle_prefix="text_encoders.qwen3vl_4b.transformer.",
        layout=BlockLayout(prefixes=("layers.",), tables={EMBEDDING: ()}),
        float16=False,
        tables=(EMBEDDING,),
        reads=partial(reads_qwen3_vl, layers),
    )


def canonical_qwen3_vl(layers: int, reader: TensorReader) -> TensorReader:
    """The first `layers` layers and the embedding, under Qwen3's names."""
    names = {_plain(key): key for key in reader.keys() if reads_qwen3_vl(layers, key)}
    return with_tables(reader, names, (EMBEDDING,))


def reads_qwen3_vl(layers: int, key: str) -> bool:
    """Whether a tensor is read, by any of its names."""
    return not key.startswith(_SEEING) and reads_qwen3(layers, _plain(key))


def _plain(key: str) -> str:
    return key.removeprefix(PREFIX).removeprefix(SHORT_PREFIX)


def qwen3_vl_recipes(shapes: Shapes) -> dict[str, Recipe]:
    """Of a file as transformers saves it. shapes: of what it holds."""
    return {key: Recipe((PREFIX + key,)) for key in shapes}


def stored_qwen3_vl(params: Qwen3Params, file_layers: int) -> SyntheticNetwork:
    """One of random weights, in no file yet, with the layers and the norm that are not read; it cannot see."""
    stored = stored_qwen3(params, file_layers)
    text = {key: value for key, value in stored.config.items() if key not in ("architectures", "rope_theta")}
    axes = params.head_dim // 2
    rope = {
        "rope_type": "default",
        "rope_theta": int(ROPE_THETA),
        "mrope_interleaved": True,
        "mrope_section": [axes - 2 * (axes // 3), axes // 3, axes // 3],
    }
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": {**text, "model_type": "qwen3_vl_text", "rms_norm_eps": NORM_EPS, "rope_parameters": rope},
        "tie_word_embeddings": True,
        "vision_config": _vision_config(params),
    }
    return SyntheticNetwork("qwen3_vl", "", "", stored.shapes, stored.recipes, config, stored.width, stored.scale)


def _vision_config(params: Qwen3Params) -> dict[str, object]:
    """Of the smallest half that transformers builds beside this one."""
    return {
        "model_type": "qwen3_vl",
        "deepstack_visual_indexes": [0],
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "num_position_embeddings": 16,
        "out_hidden_size": params.hidden_size,
        "patch_size": 16,
    }
